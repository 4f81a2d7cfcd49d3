"""From scored episodes of one task to examples: which trajectory is better than which, or which are good at all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from typing import ClassVar, Protocol

from agentrl.errors import ConfigError
from agentrl.trajectory import Leaf, Tree


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a group has to teach, as numbers among the valid leaves of its tree.

    Example:
        Preferences(chosen=(2, 2), rejected=(0, 1)): two pairs, or as labels (2,) desirable and (0, 1) undesirable.
    """

    chosen: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.chosen or self.rejected)


class PreferenceBuilder(Protocol):
    """A part of a recipe: what is better than what, or good, in the episodes of a task.

    Trajectories without a sampled token have nothing to learn from, and occur in no example.
    """

    paired: ClassVar[bool]
    """Whether `chosen` and `rejected` are pairs, place by place; otherwise labels."""

    @property
    def needs_branches(self) -> bool:
        """Whether there are examples only where trajectories branched."""
        return False

    def __call__(self, tree: Tree) -> Preferences:
        """The examples of a group; none if there is no contrast."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BestAgainstWorst(PreferenceBuilder):
    """One pair: the trajectory of the highest reward against that of the lowest, the first of equals.

    Raises:
        ConfigError: A negative margin.
    """

    paired: ClassVar[bool] = True
    margin: float = 0.0
    """The two must differ by more than this."""

    def __post_init__(self) -> None:
        _require_margin(self.margin)

    def __call__(self, tree: Tree) -> Preferences:
        """At most one pair."""
        return _widest(list(_pairs(tree, self.margin)), tree.valid_leaves)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllPairs(PreferenceBuilder):
    """Every two trajectories whose rewards differ by more than a margin; tasks with more contrast weigh more.

    Raises:
        ConfigError: A negative margin.
    """

    paired: ClassVar[bool] = True
    margin: float = 0.0

    def __post_init__(self) -> None:
        _require_margin(self.margin)

    def __call__(self, tree: Tree) -> Preferences:
        """Up to n^2 / 4 pairs if rewards are 0 and 1."""
        pairs = list(_pairs(tree, self.margin))
        return Preferences(tuple(good for good, _ in pairs), tuple(bad for _, bad in pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings(PreferenceBuilder):
    """A pair for every point at which trajectories branched: the best against the worst that part there.

    The two have the same sampled prefix, which cancels in their difference, so that what is compared is what was done
    after the branch and nothing else. Trajectories that share only the prompt are no siblings.

    Raises:
        ConfigError: A negative margin.
    """

    paired: ClassVar[bool] = True
    margin: float = 0.0

    def __post_init__(self) -> None:
        _require_margin(self.margin)

    @property
    def needs_branches(self) -> bool:
        """Yes."""
        return True

    def __call__(self, tree: Tree) -> Preferences:
        """At most one pair per branching point."""
        leaves = tree.valid_leaves
        parting: dict[int, list[tuple[int, int]]] = {}
        for good, bad in _pairs(tree, self.margin):
            paths = [tree.path(leaves[number].segment) for number in (good, bad)]
            shared = [a for a, _ in takewhile(lambda two: two[0] is two[1], zip(*paths, strict=False))]
            if any(any(segment.action_mask) for segment in shared):
                parting.setdefault(shared[-1].id, []).append((good, bad))
        widest = [_widest(parting[segment], leaves) for segment in sorted(parting)]
        return Preferences(
            tuple(number for pair in widest for number in pair.chosen),
            tuple(number for pair in widest for number in pair.rejected),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BySuccess(PreferenceBuilder):
    """Labels: what the environment counts as solved is desirable, all else is undesirable."""

    paired: ClassVar[bool] = False

    def __call__(self, tree: Tree) -> Preferences:
        """Every trajectory."""
        return _labels(tree, [leaf.success for leaf in tree.valid_leaves])


@dataclass(frozen=True, slots=True, kw_only=True)
class ByReward(PreferenceBuilder):
    """Labels: a reward of at least `threshold` is desirable, all else is undesirable."""

    paired: ClassVar[bool] = False
    threshold: float = 0.5

    def __call__(self, tree: Tree) -> Preferences:
        """Every trajectory."""
        return _labels(tree, [leaf.reward >= self.threshold for leaf in tree.valid_leaves])


def only(tree: Tree, preferences: Preferences) -> tuple[Tree, Preferences]:
    """The tree without the trajectories that occur in no example, so that nothing is computed for them.

    Args:
        tree: A group.
        preferences: Of its valid leaves.

    Returns:
        A tree whose leaves are all in an example, and the same examples by their numbers in it.
    """
    used = sorted({*preferences.chosen, *preferences.rejected})
    place = {number: i for i, number in enumerate(used)}
    leaves = tree.valid_leaves
    renumbered = Preferences(
        tuple(place[number] for number in preferences.chosen), tuple(place[number] for number in preferences.rejected)
    )
    return replace(tree, leaves=[leaves[number] for number in used]), renumbered


def _has_actions(tree: Tree, leaf: Leaf) -> bool:
    return any(any(segment.action_mask) for segment in tree.path(leaf.segment))


def _pairs(tree: Tree, margin: float) -> Iterator[tuple[int, int]]:
    """All pairs (better, worse) of valid leaves, in the order of the leaves."""
    rewards = {i: leaf.reward for i, leaf in enumerate(tree.valid_leaves) if _has_actions(tree, leaf)}
    for a, b in combinations(rewards, 2):
        good, bad = (a, b) if rewards[a] > rewards[b] else (b, a)
        if rewards[good] - rewards[bad] > margin:
            yield good, bad


def _widest(pairs: Sequence[tuple[int, int]], leaves: Sequence[Leaf]) -> Preferences:
    """The pair with the largest difference, the first of equals."""
    if not pairs:
        return Preferences()
    good, bad = max(pairs, key=lambda pair: leaves[pair[0]].reward - leaves[pair[1]].reward)
    return Preferences((good,), (bad,))


def _labels(tree: Tree, desirable: Sequence[bool]) -> Preferences:
    numbers = [i for i, leaf in enumerate(tree.valid_leaves) if _has_actions(tree, leaf)]
    return Preferences(tuple(i for i in numbers if desirable[i]), tuple(i for i in numbers if not desirable[i]))


def _require_margin(margin: float) -> None:
    if not 0.0 <= margin < float("inf"):
        raise ConfigError(f"margin must be at least 0 and finite, got {margin!r}.")
