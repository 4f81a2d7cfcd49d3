"""Which examples a group gives: pairs, siblings at a branch, labels; and trajectories after other tasks' prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_cases import random_tree

from agentrl.errors import ConfigError
from agentrl.trainers.preference.builders import (
    AllPairs,
    BestAgainstWorst,
    ByReward,
    BySuccess,
    PreferenceBuilder,
    Preferences,
    Siblings,
    only,
)
from agentrl.trainers.preference.mismatched import mismatched
from agentrl.trajectory import Leaf, StopReason, Tree


def flat(rewards: list[float], *, silent: tuple[int, ...] = (), invalid: tuple[int, ...] = ()) -> Tree:
    """Samples of one prompt, one token each; the silent ones have none."""
    tree = Tree("flat")
    tree.add(None, "prompt", 0, [1, 2])
    for number, reward in enumerate(rewards):
        segment = tree.add(0, "assistant", 0, [] if number in silent else [10 + number])
        reason = StopReason.INVALID if number in invalid else StopReason.ANSWERED
        tree.leaves.append(Leaf(segment.id, reason, reward, reward >= 1.0))
    return tree


def branched() -> Tree:
    """Leaves A, B | C, D, E: B and C branch off after two different tool results, D and E at one after C's first turn.

    0 prompt ── 1 turn ── 2 result ── 3 turn                          A  reward .2
             │                     └─ 4 turn                          B  reward .9
             └─ 5 turn ── 6 result ── 7 turn                          C  reward .5
                                   ├─ 8 turn ── 9 result ── 10 turn   D  reward .5
                                   │                     └─ 11 turn   E  reward .1
                                   └─ 12 turn                         F  reward .4
    """
    tree = Tree("branched")
    tree.add(None, "prompt", 0, [1])
    for parent, origin in (
        (0, "assistant"),
        (1, "environment"),
        (2, "assistant"),
        (2, "assistant"),
        (0, "assistant"),
        (5, "environment"),
        (6, "assistant"),
        (6, "assistant"),
        (8, "environment"),
        (9, "assistant"),
        (9, "assistant"),
        (6, "assistant"),
    ):
        tree.add(parent, origin, 0, [len(tree.segments)])
    for segment, reward in ((3, 0.2), (4, 0.9), (7, 0.5), (10, 0.5), (11, 0.1), (12, 0.4)):
        tree.leaves.append(Leaf(segment, StopReason.ANSWERED, reward, False))
    return tree


@pytest.mark.parametrize(
    ("builder", "tree", "expected"),
    [
        (BestAgainstWorst(), flat([0.5, 1.0, 0.0, 1.0, 0.0]), Preferences((1,), (2,))),  # the first of equals
        (BestAgainstWorst(), flat([1.0, 1.0]), Preferences()),
        (BestAgainstWorst(), flat([1.0]), Preferences()),
        (BestAgainstWorst(margin=0.5), flat([0.2, 0.7]), Preferences()),  # .5 is not more than .5
        (BestAgainstWorst(margin=0.4), flat([0.2, 0.7]), Preferences((1,), (0,))),
        # numbers are those among the valid leaves: 2.0 is the third of all and the second of the valid ones
        (BestAgainstWorst(), flat([1.0, 9.0, 2.0], invalid=(1,)), Preferences((1,), (0,))),
        (BestAgainstWorst(), flat([1.0, 9.0, 2.0], silent=(1,)), Preferences((2,), (0,))),
        (AllPairs(), flat([0.0, 1.0, 0.5]), Preferences((1, 2, 1), (0, 0, 2))),
        (AllPairs(margin=0.6), flat([0.0, 1.0, 0.5]), Preferences((1,), (0,))),
        (AllPairs(), flat([0.5, 0.5]), Preferences()),
        # after segment 2: B over A; after 6: C over E (.5 - .1), before C over F and D over F; after 9: D over E
        (Siblings(), branched(), Preferences((1, 2, 3), (0, 4, 4))),
        (Siblings(margin=0.5), branched(), Preferences((1,), (0,))),
        (Siblings(), flat([1.0, 0.0]), Preferences()),  # only the prompt is shared
        (BySuccess(), flat([1.0, 0.0, 0.5, 2.0], silent=(1,)), Preferences((0, 3), (2,))),
        (ByReward(threshold=0.5), flat([1.0, 0.0, 0.5, 0.4]), Preferences((0, 2), (1, 3))),
        (BySuccess(), flat([0.0], invalid=(0,)), Preferences()),
    ],
)
def test_examples_by_hand(builder: PreferenceBuilder, tree: Tree, expected: Preferences) -> None:
    assert builder(tree) == expected
    assert bool(expected) == bool(expected.chosen or expected.rejected)


@pytest.mark.parametrize("builder", [BestAgainstWorst, AllPairs, Siblings])
def test_a_negative_margin_is_refused(builder: type) -> None:
    with pytest.raises(ConfigError, match="margin must be at least 0"):
        builder(margin=-0.1)


@given(st.integers(0, 10**6))
def test_pairs_of_random_trees(seed: int) -> None:
    """Every pair has the better one first; what `only` leaves are the same trajectories in the same roles."""
    tree = random_tree(seed)
    rewards = [leaf.reward for leaf in tree.valid_leaves]
    paths = [tree.token_ids(leaf.segment) for leaf in tree.valid_leaves]
    everything = set(zip(*(AllPairs()(tree).chosen, AllPairs()(tree).rejected), strict=True))
    for builder in (BestAgainstWorst(), AllPairs(), Siblings()):
        found = builder(tree)
        pairs = list(zip(found.chosen, found.rejected, strict=True))
        assert all(rewards[good] > rewards[bad] for good, bad in pairs)
        assert set(pairs) <= everything
        small, renumbered = only(tree, found)
        assert len(small.leaves) == len({*found.chosen, *found.rejected})
        for mine, theirs in ((renumbered.chosen, found.chosen), (renumbered.rejected, found.rejected)):
            assert [small.token_ids(small.leaves[i].segment) for i in mine] == [paths[i] for i in theirs]


# Mismatched completions ----------------------------------------------------------------------------------------------


def task(name: str, prompt: list[int], completions: list[list[int]]) -> Tree:
    tree = Tree(name)
    tree.add(None, "prompt", 0, prompt)
    for completion in completions:
        segment = tree.add(0, "assistant", 0, completion)
        tree.leaves.append(Leaf(segment.id, StopReason.ANSWERED, 0.0, False))
    return tree


def paths(trees: list[Tree]) -> list[tuple[list[int], list[int]]]:
    """Token ids and masks of every trajectory."""
    return [
        (tree.token_ids(leaf.segment), [m for segment in tree.path(leaf.segment) for m in segment.action_mask])
        for tree in trees
        for leaf in tree.leaves
    ]


def test_completions_move_on_by_one_task() -> None:
    a, b, c = task("a", [1, 2], [[10], [11, 12]]), task("b", [3], [[20]]), task("c", [4, 5, 6], [[30, 31]])
    assert paths(mismatched([a, b, c], 100)) == [
        ([1, 2, 20], [0, 0, 1]),
        ([3, 30, 31], [0, 1, 1]),
        ([4, 5, 6, 10], [0, 0, 0, 1]),
        ([4, 5, 6, 11, 12], [0, 0, 0, 1, 1]),
    ]
    assert paths([a]) == [([1, 2, 10], [0, 0, 1]), ([1, 2, 11, 12], [0, 0, 1, 1])]  # the originals are as they were


def test_a_completion_never_meets_its_own_prompt() -> None:
    """Rows of a file may ask the same thing several times: the next task with another prompt it is."""
    a, again, b = task("a", [1], [[10]]), task("again", [1], [[11]]), task("b", [2], [[20]])
    assert [ids for ids, _ in paths(mismatched([a, again, b], 100))] == [[1, 20], [1, 20], [2, 10]]
    assert mismatched([a, again], 100) == []
    assert mismatched([a], 100) == []


def test_mismatched_trajectories_longer_than_the_context_are_left_out() -> None:
    a, b = task("a", [1, 1, 1], [[10]]), task("b", [2], [[20, 21], [22]])
    assert [ids for ids, _ in paths(mismatched([a, b], 4))] == [[1, 1, 1, 22], [2, 10]]
    assert [ids for ids, _ in paths(mismatched([a, b], 3))] == [[2, 10]]
