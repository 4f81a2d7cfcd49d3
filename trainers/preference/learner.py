"""One update of a preference algorithm: from groups to examples to new weights, whoever played the episodes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from agentrl.trainers.batch import lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.learner import Learner, average_steps, gradient_step, schedule
from agentrl.trainers.mini_batches import mini_batches
from agentrl.trainers.objective import Metrics
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.preference.builders import Preferences, only
from agentrl.trainers.preference.losses import path_sum, reference_point
from agentrl.trainers.preference.mismatched import mismatched
from agentrl.trainers.preference.parts import Examples, PathScores
from agentrl.trainers.preference.recipe import PreferenceRecipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Tree


@dataclass(frozen=True, slots=True)
class _Group:
    """A task with something to teach; every leaf of the tree occurs in an example."""

    tree: Tree
    preferences: Preferences
    reference: Tensor | None
    """[U]: log-probabilities under the reference."""


@dataclass(slots=True)
class _Tally:
    """What the examples of an update looked like before the step that they were in; every tensor is [N]."""

    margins: list[Tensor] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)
    rejected: list[Tensor] = field(default_factory=list)

    def add(self, examples: Examples, margins: Tensor) -> None:
        self.margins.append(margins.detach())
        self.chosen.append(examples.chosen.logprobs.detach())
        self.rejected.append(examples.rejected.logprobs.detach())

    def metrics(self) -> dict[str, float]:
        """Means over examples; what there is none of is left out."""
        margins = torch.cat(self.margins)
        columns = {
            "reward_margin": margins,
            "reward_accuracy": (margins > 0).double(),
            "logprobs_chosen": torch.cat(self.chosen),
            "logprobs_rejected": torch.cat(self.rejected),
        }
        return {name: float(column.mean()) for name, column in columns.items() if column.numel()}


class PreferenceLearner(Learner):
    """Builds examples from groups, and steps AdamW on the mean of their losses.

    A mini-batch is a number of groups, and its loss the mean over all of its examples. For KTO it also gives z0: a
    mini-batch whose tasks all have the same prompt has no mismatched completion, so no step is made with it.

    Args:
        recipe: The algorithm.
        settings: Optimizer, mini-batches, memory bound.
        scorer: Forward pass of the policy that is trained.
        temperature: At which the policy is meant to be sampled.
        total_updates: Length of the schedule.
        context_length: Longest sequence in tokens that the model takes.
        reference: Log-probabilities [U] of trees under the frozen reference model; needed if the recipe says so.
    """

    def __init__(
        self,
        recipe: PreferenceRecipe,
        settings: OptimizerSettings,
        scorer: TokenScorer,
        *,
        temperature: float,
        total_updates: int,
        context_length: int,
        reference: Callable[[list[Tree]], Tensor] | None = None,
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._scorer = scorer
        self._temperature = temperature
        self._total_updates = total_updates
        self._context_length = context_length
        self._reference = reference
        parameters = [p for p in scorer.model.parameters() if p.requires_grad]
        self._device = parameters[0].device
        self.optimizer = MasterAdamW(parameters, settings)

    def update(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Trains on the examples that the groups give; see `Learner`.

        Returns:
            "examples" (pairs or labels), "groups_without_examples", and if a step was made: "loss", "grad_norm",
            "reward_margin" (its mean) and "reward_accuracy" (share of positive ones), "logprobs_chosen" and
            "logprobs_rejected" (means of sums over a trajectory), for KTO "reference_point".
        """
        groups = list(self._groups(trees))
        factor = schedule(self._settings, number, self._total_updates)
        self.optimizer.learning_rate = self._settings.learning_rate * factor
        tally = _Tally()
        batches = list(mini_batches(len(groups), self._settings, seed)) if groups else []
        steps = [step for chosen in batches if (step := self._step([groups[i] for i in chosen], tally))]
        metrics = {
            "examples": float(sum(self._count(group) for group in groups)),
            "groups_without_examples": float(len(trees) - len(groups)),
            "steps_passed_over": float(len(batches) - len(steps)),
            "learning_rate": self.optimizer.learning_rate,
        }
        return {**metrics, **average_steps(steps), **tally.metrics()} if steps else metrics

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])

    def _groups(self, trees: Sequence[Tree]) -> Iterator[_Group]:
        """The trees with an example, each cut down to the trajectories that occur in one."""
        for tree in trees:
            preferences = self._recipe.builder(tree)
            if preferences:
                small, preferences = only(tree, preferences)
                yield _Group(small, preferences, self._reference_logprobs(small))

    @torch.no_grad()
    def _reference_logprobs(self, tree: Tree) -> Tensor | None:
        if not self._recipe.needs_reference:
            return None
        assert self._reference is not None, "the trainer loads a reference whenever the recipe needs one"
        return self._reference([tree])

    def _count(self, group: _Group) -> int:
        """Pairs, or labels."""
        preferences = group.preferences
        return len(preferences.chosen) + (0 if self._recipe.loss.paired else len(preferences.rejected))

    def _step(self, groups: Sequence[_Group], tally: _Tally) -> dict[str, float] | None:
        """An optimizer step; None if there is no reference point to make it with."""
        metrics: dict[str, float] = {}
        point: Tensor | None = None
        if self._recipe.loss.needs_reference_point:
            point = self._reference_point([group.tree for group in groups])
            if point is None:
                return None
            metrics["reference_point"] = float(point)
        total = sum(map(self._count, groups))
        parts = self._scorer.split([group.tree for group in groups], self._settings.max_tokens_per_micro_batch)
        losses = (self._loss([groups[i] for i in part], total, point, tally) for part in parts)
        return {**metrics, **gradient_step(self._scorer.model, self.optimizer, losses)}

    def _loss(
        self, groups: Sequence[_Group], total: int, point: Tensor | None, tally: _Tally
    ) -> tuple[Tensor, Metrics]:
        """A micro-batch's share of the mean over `total` examples."""
        references = [group.reference for group in groups if group.reference is not None]
        paths = self._scores([group.tree for group in groups], torch.cat(references) if references else None)
        chosen: list[int] = []
        rejected: list[int] = []
        first = 0
        for group in groups:
            chosen.extend(first + i for i in group.preferences.chosen)
            rejected.extend(first + i for i in group.preferences.rejected)
            first += len(group.tree.leaves)
        examples = Examples(chosen=paths.rows(chosen), rejected=paths.rows(rejected), reference_point=point)
        losses, margins = self._recipe.loss(examples)
        tally.add(examples, margins)
        return losses.sum() / total, {"num_tokens": paths.lengths.sum()}

    def _scores(self, trees: list[Tree], reference: Tensor | None) -> PathScores:
        """Every trajectory of the trees under the policy, and against [U] of the reference."""
        batch = lay_out_paths(trees).to(self._device)
        logprobs = self._scorer.score(trees, temperature=self._temperature).logprobs[batch.token_index]
        ratios = logprobs.detach() * torch.nan if reference is None else logprobs - reference[batch.token_index]
        return PathScores(
            logprobs=path_sum(logprobs, batch.mask),
            log_ratios=path_sum(ratios, batch.mask),
            lengths=batch.lengths,
        )

    @torch.no_grad()
    def _reference_point(self, trees: Sequence[Tree]) -> Tensor | None:
        """z0 of a mini-batch; None if all of its tasks have one prompt."""
        others = mismatched(trees, self._context_length)
        ratios = [self._scores([tree], self._reference_logprobs(tree)).log_ratios for tree in others]
        return reference_point(torch.cat(ratios)) if ratios else None
