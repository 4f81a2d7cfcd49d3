"""Episodes for training: which tasks come next, groups until the batch is full, and what to report about them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agentrl.errors import ConfigError
from agentrl.journal import Journal
from agentrl.policies.core import Sampling
from agentrl.rollout.collector import INTERRUPTED, Collector
from agentrl.rollout.plan import GroupPlan
from agentrl.seeding import derive, generator
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.batch import GREEDY_REWARD
from agentrl.trajectory import Tree


class TaskOrder:
    """The order of training tasks: one seeded shuffle after another, every task once in each.

    Args:
        num_tasks: Size of the training split.
        seed: Of the run.
        position: Tasks drawn before, in a run that is resumed.
    """

    def __init__(self, num_tasks: int, seed: int, position: int = 0) -> None:
        self._num_tasks = num_tasks
        self._seed = seed
        self.position = position
        self._shuffles: dict[int, NDArray[np.int64]] = {}

    def draw(self, count: int) -> list[int]:
        """The next `count` tasks."""
        drawn = []
        for place in range(self.position, self.position + count):
            epoch, index = divmod(place, self._num_tasks)
            if epoch not in self._shuffles:
                self._shuffles = {epoch: generator(self._seed, "task-order", epoch).permutation(self._num_tasks)}
            drawn.append(int(self._shuffles[epoch][index]))
        self.position += count
        return drawn


@dataclass(frozen=True, slots=True)
class Harvest:
    """The episodes of one update."""

    trees: list[Tree]
    """All groups that were sampled, also those that the recipe's filter keeps out of the update."""
    kept: list[Tree]
    """The groups to train on."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What there is to say about them."""


class EpisodeSource(Protocol):
    """Where the episodes of an update come from."""

    position: int
    """Tasks drawn so far; set when a run is resumed."""
    journal: Journal | None = None
    """Where tool calls are recorded of episodes that no collector plays."""

    def sample(self, seed: int) -> Harvest:
        """The episodes of the next update.

        Args:
            seed: Of this update.

        Raises:
            ConfigError: No episode is valid.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep beside `position`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        return None


class OrderedSource(EpisodeSource):
    """A source that goes through tasks, or rows of a file, in a seeded order.

    Args:
        order: Of them.
    """

    def __init__(self, order: TaskOrder) -> None:
        self._order = order

    @property
    def position(self) -> int:
        """Drawn so far."""
        return self._order.position

    @position.setter
    def position(self, position: int) -> None:
        self._order.position = position


class TrainingRollouts(OrderedSource):
    """Samples the groups of an update.

    Args:
        collector: Policy, environment, limits.
        order: Training tasks.
        recipe: Its sampling plan, its filter of groups, and whether it compares with a greedy episode.
        tasks_per_update: Groups an update trains on.
        sampling: How tokens are drawn.
    """

    def __init__(
        self,
        collector: Collector,
        order: TaskOrder,
        recipe: Algorithm,
        *,
        tasks_per_update: int,
        sampling: Sampling,
    ) -> None:
        super().__init__(order)
        self._collector = collector
        self._recipe = recipe
        self._tasks_per_update = tasks_per_update
        self._sampling = sampling

    def sample(self, seed: int) -> Harvest:
        """Rolls out groups until enough pass the recipe's filter, or the bound on batches is reached.

        DAPO's dynamic sampling (arXiv:2503.14476, section 3.2) without its unbounded wait: after the last allowed
        batch the update goes on with what there is.

        Args:
            seed: Of this update.

        Raises:
            ConfigError: No episode is valid.
        """
        trees: list[Tree] = []
        kept: list[Tree] = []
        baselines: list[Tree] = []
        group_filter = self._recipe.group_filter
        for attempt in range(1 if group_filter is None else group_filter.max_rounds):
            tasks = self._order.draw(self._tasks_per_update)
            batch = self._collector.collect(
                tasks, self._recipe.sampling, seed=derive(seed, "batch", attempt), sampling=self._sampling
            )
            trees.extend(batch)
            passed = [tree for tree in batch if tree.valid_leaves and self._passes(tree)]
            kept.extend(self._with_greedy(passed, baselines) if self._recipe.needs_greedy else passed)
            if len(kept) >= self._tasks_per_update:
                break
        require_valid(trees)
        metrics = {**rollout_metrics(trees), **baseline_metrics(baselines)}
        return Harvest(trees, kept[: self._tasks_per_update], metrics)

    def _with_greedy(self, groups: Sequence[Tree], baselines: list[Tree]) -> list[Tree]:
        """The groups with the return of a greedy episode of their task; those whose greedy episode failed are left out.

        Args:
            groups: Sampled groups.
            baselines: The greedy episodes are added to it.
        """
        tasks = [group.metadata["task"] for group in groups]
        played = self._collector.collect(tasks, GroupPlan(size=1), seed=0, sampling=Sampling(temperature=0.0))
        baselines.extend(played)
        return [
            replace(group, metadata={**group.metadata, GREEDY_REWARD: leaf.reward})
            for group, tree in zip(groups, played, strict=True)
            for leaf in tree.valid_leaves
        ]

    def _passes(self, tree: Tree) -> bool:
        group_filter = self._recipe.group_filter
        return group_filter is None or group_filter([leaf.reward for leaf in tree.valid_leaves])


def require_valid(trees: Sequence[Tree]) -> None:
    """Raises `ConfigError` if infrastructure failed in every episode.

    Not where episodes were discarded because an interrupted run has begun calls in them that must not be run twice: the
    updates after this one are not concerned.
    """
    if not any(tree.valid_leaves or INTERRUPTED in tree.metadata for tree in trees):
        errors = Counter(leaf.error for tree in trees for leaf in tree.leaves)
        raise ConfigError(f"No episode of this update is valid. Most frequent cause: {errors.most_common(1)[0][0]}")


def baseline_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """What greedy episodes cost, and how well they did; nothing if none was played."""
    leaves = [leaf for tree in trees for leaf in tree.valid_leaves]
    if not trees:
        return {}
    return {
        "baseline_episodes": float(len(trees)),
        "baseline_success": sum(leaf.success for leaf in leaves) / max(1, len(leaves)),
        "baseline_tool_calls": float(sum(sum(leaf.tool_calls.values()) for leaf in leaves)),
    }


def rollout_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """What people watch: means over valid episodes, and counts of what is not a normal episode."""
    leaves = [leaf for tree in trees for leaf in tree.valid_leaves]
    groups = [np.array([leaf.reward for leaf in tree.valid_leaves]) for tree in trees if tree.valid_leaves]
    sampled = [(sum(s.action_mask), sum(s.entropies)) for tree in trees for s in tree.segments]
    num_sampled = sum(count for count, _ in sampled)
    total = max(1, len(leaves))
    return {
        "success": sum(leaf.success for leaf in leaves) / total,
        "reward": sum(leaf.reward for leaf in leaves) / total,
        "reward_std": float(np.mean([group.std() for group in groups])) if groups else 0.0,
        "frac_reward_zero_std": sum(np.ptp(group) == 0 for group in groups) / max(1, len(groups)),
        "entropy": sum(entropy for _, entropy in sampled) / max(1, num_sampled),
        "turns": sum(leaf.num_turns for leaf in leaves) / total,
        "tool_calls": sum(sum(leaf.tool_calls.values()) for leaf in leaves) / total,
        "tool_errors": sum(sum(leaf.tool_errors.values()) for leaf in leaves) / total,
        "truncated": sum(leaf.stop_reason.is_truncation for leaf in leaves) / total,
        "branches": sum(leaf.fork_of is not None for leaf in leaves) / max(1, len(trees)),
        "failed_forks": float(sum(tree.metadata.get("failed_forks", 0) for tree in trees)),
        "episodes": float(len(leaves)),
        "invalid_episodes": float(sum(not leaf.valid for tree in trees for leaf in tree.leaves)),
        "sampled_tokens": float(num_sampled),
        "unique_tokens": float(sum(tree.num_tokens for tree in trees)),
        "path_tokens": float(sum(tree.num_path_tokens for tree in trees)),
    }
