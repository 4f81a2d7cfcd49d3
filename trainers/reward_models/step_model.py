"""A learned step model: how likely success is after each turn, from what has been said so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from agentrl.errors import ConfigError
from agentrl.policies.loading import LoadedModel
from agentrl.trainers.reward_models.completions import CountedCompletions
from agentrl.trainers.reward_models.core import Completer, RewardModel, RewardSource
from agentrl.trainers.reward_models.ngrams import NgramClassifier, Passage
from agentrl.trainers.reward_models.step_values import BranchValues, StepValues
from agentrl.trainers.reward_models.steps import Values, turns_of, with_step_rewards
from agentrl.trajectory import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel(RewardSource):
    """A classifier learns the labels of turn ends by binary cross-entropy and gives their values: a PRM.

    Its values are potentials: they spread the environment's return over the turns and never replace it, so a turn
    cannot be paid for what it does not bring. It sees bags of hashed n-grams, the prompt's apart from those of all that
    followed; it starts anew with the run and learns after every update. Until it has, the environment's rewards stand.

    Raises:
        ConfigError: A number that is not positive.
    """

    labels: StepValues = field(default_factory=BranchValues)
    """Where the labels come from; soft ones, such as shares of solved leaves, are fine."""
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    """Optimizer steps of the first fit."""
    fit_steps: int = 20
    """Optimizer steps after every later update."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or min(self.warmup_steps, self.fit_steps) < 1:
            raise ConfigError("learning_rate, warmup_steps and fit_steps of a step model must be positive.")

    @property
    def min_group_size(self) -> int:
        """As `StepValues`."""
        return self.labels.min_group_size

    @property
    def needs_completions(self) -> bool:
        """As the labels."""
        return self.labels.needs_completions

    def build(self, policy: LoadedModel, complete: Completer, *, seed: int) -> "StepModelRewards":
        """A model that knows nothing yet."""
        return StepModelRewards(self, complete, seed=seed)


class StepModelRewards(RewardModel):
    """The model of a run; see `StepModel`.

    Args:
        settings: Of the model.
        complete: For labels that need it.
        seed: Of the run.
    """

    def __init__(self, settings: StepModel, complete: Completer, *, seed: int) -> None:
        self._settings = settings
        self._complete = CountedCompletions(complete)
        self._classifier = NgramClassifier(learning_rate=settings.learning_rate, seed=seed)
        self._num_fits = 0

    def values(self, trees: Sequence[Tree]) -> list[Values]:
        """The probability of success after every turn of valid trajectories, and before the first."""
        passages = [_passages(tree) for tree in trees]
        logits = self._classifier.logits([passage for own in passages for passage in own.values()])
        probabilities = iter(torch.sigmoid(logits).tolist())
        return [{node: next(probabilities) for node in own} for own in passages]

    def score(self, trees: Sequence[Tree], *, seed: int) -> list[Tree]:
        """Differences of values as rewards of turns."""
        if not self._num_fits:
            return list(trees)
        return [with_step_rewards(tree, values) for tree, values in zip(trees, self.values(trees), strict=True)]

    def fit(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Learns the labels of all turn ends, those of prompts included.

        Returns:
            "step_model/error", the mean distance from the labels before it learns them; "step_model/loss" after;
            "step_model/examples"; and what completions took, if labels need them.
        """
        settings = self._settings
        labels = settings.labels.labels(trees, self._complete, seed=seed)
        examples = [
            (passage, known[node])
            for tree, known in zip(trees, labels, strict=True)
            for node, passage in _passages(tree).items()
        ]
        if not examples:
            return {}
        passages, targets = [passage for passage, _ in examples], torch.tensor([target for _, target in examples])
        error = (torch.sigmoid(self._classifier.logits(passages)) - targets).abs().mean().item()
        steps = settings.fit_steps if self._num_fits else settings.warmup_steps
        loss = self._classifier.fit(passages, targets, torch.ones_like(targets), num_steps=steps)
        self._num_fits += 1
        learned = {"step_model/error": error, "step_model/loss": loss, "step_model/examples": float(len(examples))}
        return {**learned, **self._complete.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments, and whether it has learned anything."""
        return {"classifier": self._classifier.state_dict(), "num_fits": self._num_fits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._classifier.load_state_dict(state["classifier"])
        self._num_fits = state["num_fits"]


def _passages(tree: Tree) -> dict[int, Passage]:
    """What had been said when each turn of a valid trajectory had ended, and before the first; by segment id."""
    passages: dict[int, Passage] = {}
    for leaf in tree.valid_leaves:
        prompt = tree.path(leaf.segment)[0]
        opening = tuple(prompt.token_ids)
        for node in [prompt, *turns_of(tree, leaf)]:
            if node.id not in passages:
                passages[node.id] = Passage(opening, tuple(tree.token_ids(node.id)[len(opening) :]))
    return passages
