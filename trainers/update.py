"""One update of an on-policy algorithm by gradient steps: from the trees of a rollout to new weights."""

from dataclasses import replace
from typing import Any, Unpack

import torch
from torch import Tensor

from agentrl.seeding import derive
from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import average_steps, gradient_step
from agentrl.trainers.mini_batches import Experience, Part
from agentrl.trainers.objective import surrogate_inputs
from agentrl.trainers.on_policy import OnPolicyLearner, Surroundings
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import OptimizerSettings


class Updater(OnPolicyLearner):
    """Computes losses from trees and steps AdamW; arguments as `OnPolicyLearner`."""

    def __init__(
        self, recipe: Recipe, settings: OptimizerSettings, scorer: TokenScorer, **surroundings: Unpack[Surroundings]
    ) -> None:
        super().__init__(recipe, settings, scorer, **surroundings)
        self.optimizer = MasterAdamW(self.parameters, settings)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, and the critic's."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])

    def _improve(self, known: Experience, factor: float, seed: int) -> dict[str, float]:
        self.optimizer.learning_rate = self._settings.learning_rate * factor
        steps: list[dict[str, float]] = []
        for parts in self._steps(known, self._recipe, seed):
            steps.append(self._step(parts, derive(seed, "step", len(steps))))
        return {**average_steps(steps), "learning_rate": self.optimizer.learning_rate}

    def _step(self, parts: list[Part], seed: int) -> dict[str, float]:
        recipe = self._fitted(parts, seed) if self._recipe.surrogate.needs_fit else self._recipe
        losses = (self._loss(recipe, part, self._logprobs(part), seed) for part in parts)
        return gradient_step(self._scorer.model, self.optimizer, losses)

    @torch.no_grad()
    def _fitted(self, parts: list[Part], seed: int) -> Recipe:
        """The recipe with its surrogate fitted to a whole mini-batch, which costs one more forward pass."""
        batch = lay_out_paths([tree for part in parts for tree in part.trees]).to(self.parameters[0].device)
        # Micro-batches need not follow the order of the mini-batch.
        order = torch.cat([part.rows for part in parts]).argsort()

        def joined(columns: list[Tensor]) -> Tensor:
            width = batch.mask.shape[1]
            return torch.cat([torch.nn.functional.pad(c, (0, width - c.shape[1])) for c in columns])[order]

        inputs = surrogate_inputs(
            self._recipe,
            batch.rows(order),
            joined([self._logprobs(part) for part in parts]),
            old_logprobs=joined([part.columns.old_logprobs for part in parts]),
            advantages=joined([part.columns.advantages for part in parts]),
            seed=seed,
        )
        return replace(self._recipe, surrogate=self._recipe.surrogate.fit(inputs))

    def _logprobs(self, part: Part) -> Tensor:
        return self._scores(part.trees)[part.batch.token_index]
