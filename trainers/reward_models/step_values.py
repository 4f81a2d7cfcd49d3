"""Step rewards without a model of them: values counted from what became of the episodes, or of copies of them."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from agentrl.errors import ConfigError
from agentrl.policies.loading import LoadedModel
from agentrl.rollout.continuation import Prefix
from agentrl.trainers.reward_models.completions import CountedCompletions
from agentrl.trainers.reward_models.core import Completer, RewardModel, RewardSource
from agentrl.trainers.reward_models.steps import (
    Values,
    branch_values,
    return_of,
    success_of,
    turns_of,
    with_step_rewards,
)
from agentrl.trajectory import Leaf, Tree


class StepValues(RewardSource, Protocol):
    """A reward source that estimates what an episode is worth after each turn; the differences are the rewards."""

    @property
    def min_group_size(self) -> int:
        """What a prompt is worth is the mean of its group; one trajectory alone would always earn 0."""
        return 2

    def potentials(self, trees: Sequence[Tree], complete: Completer, *, seed: int) -> list[Values]:
        """Expected returns, one mapping for each tree.

        Args:
            trees: Of one update.
            complete: Plays episodes to their end.
            seed: Of this update.
        """
        ...

    def labels(self, trees: Sequence[Tree], complete: Completer, *, seed: int) -> list[Values]:
        """Probabilities of success in [0, 1], for a model to learn; arguments as `potentials`."""
        ...

    def build(self, policy: LoadedModel, complete: Completer, *, seed: int) -> RewardModel:
        """Rewards r_k = V_k - V_(k-1) of the potentials."""
        return _PotentialRewards(self, complete)


class _PotentialRewards(RewardModel):
    """They do not learn; `fit` tells what `score` took."""

    def __init__(self, source: StepValues, complete: Completer) -> None:
        self._source = source
        self._complete = CountedCompletions(complete)

    def score(self, trees: Sequence[Tree], *, seed: int) -> list[Tree]:
        values = self._source.potentials(trees, self._complete, seed=seed)
        return [with_step_rewards(tree, known) for tree, known in zip(trees, values, strict=True)]

    def fit(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        return self._complete.metrics()


@dataclass(frozen=True, slots=True)
class BranchValues(StepValues):
    """A turn is worth the mean return of the leaves below it: free of cost where trajectories branch.

    A turn after which a single trajectory went on has no other to tell about it, and its own return would leave
    nothing for its later turns to earn: as a potential, it has the value of the turn before (or of the prompt). So the
    turns after the last branching share what became of them.
    """

    @property
    def needs_branches(self) -> bool:
        """Without them no turn but the last would ever earn anything."""
        return True

    def potentials(self, trees: Sequence[Tree], complete: Completer, *, seed: int) -> list[Values]:
        """Mean returns below."""
        return [branch_values(tree, return_of, min_leaves=2) for tree in trees]

    def labels(self, trees: Sequence[Tree], complete: Completer, *, seed: int) -> list[Values]:
        """Shares of solved leaves below, be it a single one."""
        return [branch_values(tree, success_of) for tree in trees]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonteCarloValues(StepValues):
    """A turn is worth what completions of the episode from there bring: Math-Shepherd, arXiv:2312.08935, section 3.3.

    After each turn but the last, the environment is forked and the policy plays on `num_completions` times. Turns that
    trajectories share are completed once. The prompt's value comes from the group itself.

    Cost: `num_completions` episodes, less their beginnings, for every turn that an episode goes on after.

    Raises:
        ConfigError: No completion.
    """

    num_completions: int = 8
    hard: bool = False
    """Whether one good completion will do (the best counts), instead of the mean."""

    def __post_init__(self) -> None:
        if self.num_completions < 1:
            raise ConfigError(f"num_completions must be at least 1, got {self.num_completions}.")

    @property
    def needs_completions(self) -> bool:
        """They are its samples."""
        return True

    def potentials(self, trees: Sequence[Tree], complete: Completer, *, seed: int) -> list[Values]:
        """Mean (or best) returns of completions."""
        return self._values(trees, complete, return_of, seed)

    def labels(self, trees: Sequence[Tree], complete: Completer, *, seed: int) -> list[Values]:
        """Soft: the share of completions that succeed; hard: 1 if any does, else 0."""
        return self._values(trees, complete, success_of, seed)

    def _values(
        self, trees: Sequence[Tree], complete: Completer, measure: Callable[[Leaf], float], seed: int
    ) -> list[Values]:
        ends = [_turn_ends(tree) for tree in trees]
        prefixes = [Prefix(tree, end) for tree, ends in zip(trees, ends, strict=True) for end in ends.values()]
        completions = iter(complete(prefixes, self.num_completions, seed=seed) if prefixes else [])
        return [
            self._of_tree(tree, {turn: next(completions) for turn in own}, measure)
            for tree, own in zip(trees, ends, strict=True)
        ]

    def _of_tree(self, tree: Tree, below: dict[int, list[Leaf]], measure: Callable[[Leaf], float]) -> Values:
        """Values of a tree; a turn that could not be completed has that of the turn before."""
        combine: Callable[[list[float]], float] = max if self.hard else fmean
        values: dict[int, float] = {}
        for leaf in tree.valid_leaves:
            prompt, turns = tree.path(leaf.segment)[0], turns_of(tree, leaf)
            value = values.setdefault(prompt.id, combine([measure(other) for other in tree.valid_leaves]))
            for turn in turns[:-1]:
                completed = [measure(other) for other in below[turn.id]]
                value = values.setdefault(turn.id, combine(completed) if completed else value)
            if turns:
                values[turns[-1].id] = measure(leaf)
        return values


def _turn_ends(tree: Tree) -> dict[int, int]:
    """The environment's answer to every turn that some valid trajectory went on after, by the turn's segment."""
    ends: dict[int, int] = {}
    for leaf in tree.valid_leaves:
        pairs = itertools.pairwise(tree.path(leaf.segment)[:-1])
        ends.update((turn.id, answer.id) for turn, answer in pairs if turn.origin == "assistant")
    return ends
