"""One update of an on-policy algorithm: from the trees of a rollout to new weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentrl.seeding import derive, generator
from agentrl.trainers.batch import PathBatch, lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import Learner, gradient_step, schedule
from agentrl.trainers.objective import (
    Metrics,
    assign_credit,
    compute_weights,
    gather_feedback,
    policy_loss,
    surrogate_inputs,
)
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Tree


@dataclass(frozen=True, slots=True)
class Columns:
    """What was computed for all trajectories of a batch before its first optimizer step; every tensor is [B, L]."""

    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor

    def cut(self, rows: Tensor, width: int) -> "Columns":
        """Some rows, and the first columns."""
        ref = None if self.ref_logprobs is None else self.ref_logprobs[rows, :width]
        return Columns(self.old_logprobs[rows, :width], ref, self.advantages[rows, :width])


@dataclass(frozen=True, slots=True)
class Part:
    """A micro-batch: whole trees, and their share of what was computed for batch and mini-batch."""

    trees: list[Tree]
    batch: PathBatch
    columns: Columns
    weights: Tensor
    """[B, L]"""
    rows: Tensor
    """[B] int64: which trajectories of the mini-batch these are."""


class Updater(Learner):
    """Computes losses from trees and steps the optimizer.

    Args:
        recipe: The algorithm.
        settings: Optimizer, mini-batches, memory bound.
        scorer: Forward pass of the policy that is trained.
        temperature: At which the trees were sampled.
        total_updates: Length of the schedule.
        reference: Log-probabilities [U] of trees under the frozen reference model; needed if the recipe says so.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: OptimizerSettings,
        scorer: TokenScorer,
        *,
        temperature: float,
        total_updates: int,
        reference: Callable[[list[Tree]], Tensor] | None = None,
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._scorer = scorer
        self._temperature = temperature
        self._total_updates = total_updates
        self._reference = reference
        self.parameters = [p for p in scorer.model.parameters() if p.requires_grad]
        self.optimizer = MasterAdamW(self.parameters, settings)

    def update(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Trains on the episodes of one rollout; see `Learner`."""
        groups = [tree for tree in trees if tree.valid_leaves]
        factor = schedule(self._settings, number, self._total_updates)
        self.optimizer.learning_rate = self._settings.learning_rate * factor
        steps: list[dict[str, float]] = []
        batch, columns = self._prepare(groups)
        for epoch in range(self._settings.epochs):
            order = generator(seed, "mini-batches", epoch).permutation(len(groups))
            for chosen in np.array_split(order, min(self._settings.mini_batches, len(groups))):
                parts = self._parts(groups, sorted(chosen.tolist()), batch, columns)
                steps.append(self._step(parts, derive(seed, "step", len(steps))))
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return {**means, "learning_rate": self.optimizer.learning_rate}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])

    def _prepare(self, groups: list[Tree]) -> tuple[PathBatch, Columns]:
        """All trajectories as rows on the model's device, and what has to be known of all of them."""
        batch = lay_out_paths(groups).to(self.parameters[0].device)
        old, reference = batch.logprobs, None
        if self._recipe.needs_old_logprobs:
            old = self._by_row(self._scores, groups, batch)
        if self._recipe.needs_reference:
            assert self._reference is not None, "the trainer loads a reference whenever the recipe needs one"
            reference = self._by_row(self._reference, groups, batch)
        feedback = gather_feedback(self._recipe, batch, old_logprobs=old, ref_logprobs=reference)
        return batch, Columns(old, reference, assign_credit(self._recipe, feedback))

    @torch.no_grad()
    def _by_row(self, score: Callable[[list[Tree]], Tensor], groups: list[Tree], batch: PathBatch) -> Tensor:
        """[B, L] from a function that gives [U] for some trees; they go through it one by one."""
        scores = torch.cat([score([tree]) for tree in groups])  # unique tokens are numbered tree by tree
        return scores[batch.token_index]

    def _parts(self, groups: list[Tree], chosen: list[int], batch: PathBatch, columns: Columns) -> list[Part]:
        """Cuts a mini-batch into micro-batches of whole trees; weights are those of the whole mini-batch."""
        members = torch.isin(batch.group, torch.tensor(chosen, device=batch.group.device)).nonzero().flatten()
        weights = compute_weights(self._recipe, batch.rows(members), old_logprobs=columns.old_logprobs[members])
        parts = []
        for part in self._scorer.split([groups[i] for i in chosen], self._settings.max_tokens_per_micro_batch):
            numbers = [chosen[i] for i in part]
            rows = torch.cat([(batch.group[members] == i).nonzero().flatten() for i in numbers])
            trees = [groups[i] for i in numbers]
            laid_out = lay_out_paths(trees).to(batch.mask.device)
            width = laid_out.mask.shape[1]  # of this micro-batch; the whole batch may be wider
            parts.append(Part(trees, laid_out, columns.cut(members[rows], width), weights[rows, :width], rows))
        return parts

    def _step(self, parts: list[Part], seed: int) -> dict[str, float]:
        recipe = self._fitted(parts, seed) if self._recipe.surrogate.needs_fit else self._recipe
        losses = (self._loss(recipe, part, seed) for part in parts)
        return gradient_step(self._scorer.model, self.optimizer, losses)

    @torch.no_grad()
    def _fitted(self, parts: list[Part], seed: int) -> Recipe:
        """The recipe with its surrogate fitted to a whole mini-batch, which costs one more forward pass."""
        batch = lay_out_paths([tree for part in parts for tree in part.trees]).to(self.parameters[0].device)
        order = torch.cat(
            [part.rows for part in parts]
        ).argsort()  # micro-batches need not follow the mini-batch's order

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

    def _scores(self, trees: list[Tree]) -> Tensor:
        return self._scorer.score(trees, temperature=self._temperature).logprobs

    def _logprobs(self, part: Part) -> Tensor:
        return self._scores(part.trees)[part.batch.token_index]

    def _loss(self, recipe: Recipe, part: Part, seed: int) -> tuple[Tensor, Metrics]:
        logprobs = self._logprobs(part)
        old = part.columns.old_logprobs
        loss, metrics = policy_loss(
            recipe,
            part.batch,
            logprobs,
            old_logprobs=old,
            advantages=part.columns.advantages,
            weights=part.weights,
            ref_logprobs=part.columns.ref_logprobs,
            rows=part.rows,
            seed=seed,
        )
        drift = (logprobs.detach() - old).abs().masked_fill(~part.batch.mask, 0.0)
        return loss, {**metrics, "logprob_drift": drift.sum() / part.batch.mask.sum().clamp(min=1)}
