"""Step rewards from values: what an episode was worth after each of its turns, and what each turn was therefore worth.

A step is a turn: what the policy sampled up to a tool call or an answer; it ends at its last sampled token. Its value
belongs to the turn's segment in the tree, so turns that trajectories share have one value.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeAlias

from agentrl.trajectory import Leaf, Segment, Tree

Values: TypeAlias = Mapping[int, float]
"""By segment id of a tree: the value when the turn in that segment has ended; under the prompt's id, the value before
the first turn."""


def success_of(leaf: Leaf) -> float:
    """1 for a solved task, else 0."""
    return float(leaf.success)


def return_of(leaf: Leaf) -> float:
    """The return of a trajectory."""
    return leaf.reward


def turns_of(tree: Tree, leaf: Leaf) -> list[Segment]:
    """The turns of a trajectory in order."""
    return [segment for segment in tree.path(leaf.segment) if segment.origin == "assistant"]


def branch_values(tree: Tree, measure: Callable[[Leaf], float], *, min_leaves: int = 1) -> Values:
    """V(node) = the mean of `measure` over the leaves below: Monte Carlo values that a branching tree has for free.

    Args:
        tree: Leaves that are not valid are passed over.
        measure: Such as `return_of`.
        min_leaves: With fewer leaves below, a node has the value of the node before it.

    Returns:
        Values of the prompt and of all turns of valid trajectories.
    """
    below: dict[int, list[float]] = {}
    previous: dict[int, int] = {}
    for leaf in tree.valid_leaves:
        nodes = [tree.path(leaf.segment)[0], *turns_of(tree, leaf)]
        for node in nodes:
            below.setdefault(node.id, []).append(measure(leaf))
        previous.update((node.id, before.id) for before, node in itertools.pairwise(nodes))
    values: dict[int, float] = {}
    for node_id in sorted(below):  # parents come first
        measured = below[node_id]
        known = len(measured) >= min_leaves or node_id not in previous
        values[node_id] = sum(measured) / len(measured) if known else values[previous[node_id]]
    return values


def potential_rewards(before: float, values: Sequence[float]) -> list[float]:
    """r_k = V_k - V_(k-1): what each step changed (potential-based shaping, Ng et al. 1999, without discount).

    They add up to V_last - `before` whatever the values between: however many steps a trajectory takes, and however
    good each of them looks, its total stays what came of it.

    Args:
        before: Value before the first step.
        values: Value after each step; the last is the return.

    >>> potential_rewards(0.5, [0.75, 0.25, 1.0])
    [0.25, -0.5, 0.75]
    """
    return [after - value for value, after in zip([before, *values], values, strict=False)]


def with_step_rewards(tree: Tree, values: Values) -> Tree:
    """The tree with differences of values as rewards of the turns.

    Before its first turn a trajectory is worth the mean return of the task's trajectories, after its last turn its own
    return, whatever `values` says of these two. So the rewards of a group add up to 0, and no number of turns pays by
    itself once they are normalized, however wrong the values in between are; and estimators that compare the
    trajectories of a task see no difference in the total.

    Args:
        tree: Not changed.
        values: As `Values` says, for every turn that is not a trajectory's last.
    """
    if not tree.valid_leaves:
        return tree
    before = fmean(leaf.reward for leaf in tree.valid_leaves)
    return replace(tree, leaves=[_shaped(tree, leaf, before, values) if leaf.valid else leaf for leaf in tree.leaves])


def _shaped(tree: Tree, leaf: Leaf, before: float, values: Values) -> Leaf:
    after = [*(values[turn.id] for turn in turns_of(tree, leaf)[:-1]), leaf.reward]
    rewards = potential_rewards(before, after)
    return replace(leaf, reward=leaf.reward - before, turn_rewards=rewards, reward_parts={})
