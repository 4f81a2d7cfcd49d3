"""Episodes for training: which tasks come next, groups until the batch is full, and what to report about them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentrl.errors import ConfigError
from agentrl.policies.core import Sampling
from agentrl.rollout.collector import Collector
from agentrl.rollout.plan import GroupPlan
from agentrl.seeding import derive, generator
from agentrl.trainers.recipe import Recipe
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


class TrainingRollouts:
    """Samples the groups of an update.

    Args:
        collector: Policy, environment, limits.
        order: Training tasks.
        recipe: Its sampling plan (with the run's overrides) and its filter of groups.
        plan: The plan to use.
        tasks_per_update: Groups an update trains on.
        sampling: How tokens are drawn.
    """

    def __init__(
        self,
        collector: Collector,
        order: TaskOrder,
        recipe: Recipe,
        plan: GroupPlan,
        *,
        tasks_per_update: int,
        sampling: Sampling,
    ) -> None:
        self._collector = collector
        self.order = order
        self._recipe = recipe
        self._plan = plan
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
        group_filter = self._recipe.group_filter
        for attempt in range(1 if group_filter is None else group_filter.max_rounds):
            tasks = self.order.draw(self._tasks_per_update)
            batch = self._collector.collect(
                tasks, self._plan, seed=derive(seed, "batch", attempt), sampling=self._sampling
            )
            trees.extend(batch)
            kept.extend(tree for tree in batch if tree.valid_leaves and self._passes(tree))
            if len(kept) >= self._tasks_per_update:
                break
        if not any(tree.valid_leaves for tree in trees):
            errors = Counter(leaf.error for tree in trees for leaf in tree.leaves)
            raise ConfigError(f"No episode of this update is valid. Most frequent cause: {errors.most_common(1)[0][0]}")
        return Harvest(trees, kept[: self._tasks_per_update])

    def _passes(self, tree: Tree) -> bool:
        group_filter = self._recipe.group_filter
        return group_filter is None or group_filter([leaf.reward for leaf in tree.valid_leaves])


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
