"""What every update of an on-policy algorithm begins with, whichever way the weights are then changed."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor

from agentrl.trainers.batch import PathBatch, lay_out_paths
from agentrl.trainers.critic import Critic
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import Learner, average_steps, schedule
from agentrl.trainers.mini_batches import Columns, Experience, Part, mini_batches
from agentrl.trainers.mismatch import mismatch_metrics
from agentrl.trainers.objective import Metrics, assign_credit, gather_feedback, loss_mask, policy_loss
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trainers.value_loss import explained_variance
from agentrl.trajectory import Tree


class Surroundings(TypedDict):
    """What an on-policy learner has to know beside recipe, settings and policy."""

    temperature: float
    """At which the trees were sampled."""
    total_updates: int
    """Length of the schedule."""
    reference: NotRequired[Callable[[list[Tree]], Tensor] | None]
    """Log-probabilities [U] of trees under the frozen reference model; needed if the recipe says so."""
    critic: NotRequired[Critic | None]
    """Likewise."""


class OnPolicyLearner(Learner):
    """Finds out what there is to know about the episodes, lets the critic learn, and leaves the policy to `_improve`.

    Args:
        recipe: The algorithm.
        settings: Optimizer, mini-batches, memory bound.
        scorer: Forward pass of the policy that is trained.
        surroundings: By keyword.
    """

    def __init__(
        self, recipe: Recipe, settings: OptimizerSettings, scorer: TokenScorer, **surroundings: Unpack[Surroundings]
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._scorer = scorer
        self._temperature = surroundings["temperature"]
        self._total_updates = surroundings["total_updates"]
        self._reference = surroundings.get("reference")
        self._critic = surroundings.get("critic")
        self.parameters = [p for p in scorer.model.parameters() if p.requires_grad]

    def update(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Trains on the episodes of one rollout; see `Learner`."""
        known = self._prepare([tree for tree in trees if tree.valid_leaves])
        factor = schedule(self._settings, number, self._total_updates)
        metrics: dict[str, float] = {}
        if self._critic is not None:
            # Before the policy: a value head reads its hidden states, which have to be those of the values in use.
            metrics = self._teach(self._critic, known, factor, seed)
            if number < self._critic.warmup_updates:
                return metrics
        return {**metrics, **self._mismatch(known), **self._improve(known, factor, seed)}

    def _mismatch(self, known: Experience) -> dict[str, float]:
        """How far the sampling engine is from the trained network, where the update has found that out."""
        if not self._recipe.needs_old_logprobs:
            return {}
        return mismatch_metrics(known.columns.old_logprobs, known.batch.logprobs, known.batch.mask)

    def state_dict(self) -> dict[str, Any]:
        """The critic's state."""
        return {} if self._critic is None else {"critic": self._critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        if self._critic is not None:
            self._critic.load_state_dict(state["critic"])

    @abstractmethod
    def _improve(self, known: Experience, factor: float, seed: int) -> dict[str, float]:
        """Changes the policy.

        Args:
            known: The episodes.
            factor: Of the learning rate, from its schedule.
            seed: Of the update.

        Returns:
            Metrics.
        """

    def _teach(self, critic: Critic, known: Experience, factor: float, seed: int) -> dict[str, float]:
        """Fits the critic in the mini-batches that the policy gets, every counted token by the recipe's aggregation.

        Factors on the losses of single tokens are about the policy's gradient and do not apply to values.
        """
        recipe = replace(self._recipe, token_weights=())
        critic.scale_learning_rate(factor)
        steps = [critic.step(parts, recipe) for parts in self._steps(known, recipe, seed)]
        values, targets = known.columns.values, known.columns.value_targets
        assert values is not None, "_prepare asks the critic"
        assert targets is not None, "_prepare asks the advantage"
        explained = explained_variance(values, targets, loss_mask(recipe, known.batch))
        return {**average_steps(steps), "explained_variance": float(explained)}

    def _steps(self, known: Experience, recipe: Recipe, seed: int) -> Iterator[list[Part]]:
        """The micro-batches of every optimizer step of an update."""
        for chosen in mini_batches(len(known.groups), self._settings, seed):
            yield known.parts(chosen, recipe, self._split)

    def _split(self, trees: Sequence[Tree]) -> list[list[int]]:
        return self._scorer.split(trees, self._settings.max_tokens_per_micro_batch)

    def _prepare(self, groups: list[Tree]) -> Experience:
        """All trajectories as rows on the model's device, and what has to be known of all of them."""
        recipe = self._recipe
        batch = lay_out_paths(groups).to(self.parameters[0].device)
        old, reference, values, targets = batch.logprobs, None, None, None
        if recipe.needs_old_logprobs:
            old = self._by_row(self._scores, groups, batch)
        if recipe.needs_reference:
            assert self._reference is not None, "the trainer loads a reference whenever the recipe needs one"
            reference = self._by_row(self._reference, groups, batch)
        if recipe.needs_critic:
            assert self._critic is not None, "the trainer builds a critic whenever the recipe needs one"
            values = self._by_row(self._critic.values, groups, batch)
        feedback = gather_feedback(recipe, batch, old_logprobs=old, ref_logprobs=reference, values=values)
        if recipe.needs_critic:
            targets = recipe.advantage.value_targets(feedback)
        columns = Columns(
            old_logprobs=old,
            ref_logprobs=reference,
            advantages=assign_credit(recipe, feedback),
            values=values,
            value_targets=targets,
        )
        return Experience(groups, batch, columns)

    @torch.no_grad()
    def _by_row(self, score: Callable[[list[Tree]], Tensor], groups: list[Tree], batch: PathBatch) -> Tensor:
        """[B, L] from a function that gives [U] for some trees; they go through it one by one."""
        scores = torch.cat([score([tree]) for tree in groups])  # unique tokens are numbered tree by tree
        return scores[batch.token_index]

    def _scores(self, trees: list[Tree]) -> Tensor:
        return self._scorer.score(trees, temperature=self._temperature).logprobs

    def _loss(self, recipe: Recipe, part: Part, logprobs: Tensor, seed: int) -> tuple[Tensor, Metrics]:
        """The loss of a micro-batch and its metrics, from log-probabilities [B, L] with gradient."""
        loss, metrics = policy_loss(
            recipe,
            part.batch,
            logprobs,
            old_logprobs=part.columns.old_logprobs,
            advantages=part.columns.advantages,
            weights=part.weights,
            ref_logprobs=part.columns.ref_logprobs,
            rows=part.rows,
            seed=seed,
        )
        drift = (logprobs.detach() - part.batch.logprobs).abs().masked_fill(~part.batch.mask, 0.0)
        return loss, {**metrics, "logprob_drift": drift.sum() / part.batch.mask.sum().clamp(min=1)}
