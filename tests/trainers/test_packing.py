"""Rows of packed and padded trees: who sees whom, where each token is predicted, and how batches are divided."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_cases import random_tree

from agentrl.errors import ConfigError
from agentrl.trainers.batch import used_segments
from agentrl.trainers.packing import (
    PackedTrees,
    num_packed_tokens,
    num_padded_tokens,
    pack_trees,
    pad_paths,
    split_by_tokens,
)
from agentrl.trajectory import Leaf, StopReason, Tree


def tree_of(prompt: list[int], *samples: list[int]) -> Tree:
    tree = Tree("t")
    tree.add(None, "prompt", 0, prompt)
    for sample in samples:
        tree.leaves.append(Leaf(tree.add(0, "assistant", 0, sample).id, StopReason.ANSWERED, 0.0, False))
    return tree


def sized(size: int) -> Tree:
    return tree_of([1] * (size - 1), [2])


def columns(packed: PackedTrees) -> list[list[list[int]]]:
    return [packed.token_ids.tolist(), packed.position_ids.tolist(), packed.subtree_end.tolist()]


def predictions(packed: PackedTrees) -> list[tuple[int, int, int]]:
    return list(zip(packed.row.tolist(), packed.column.tolist(), packed.target.tolist(), strict=True))


def test_packed_prompt_with_two_samples() -> None:
    packed = pack_trees([tree_of([5, 6], [7, 8], [9])])
    # The prompt's descendants reach to the end of the row, the first sample's end before the second begins.
    assert columns(packed) == [[[5, 6, 7, 8, 9]], [[0, 1, 2, 3, 2]], [[5, 5, 4, 4, 5]]]
    assert predictions(packed) == [(0, 1, 7), (0, 2, 8), (0, 1, 9)]  # both first tokens come from the prompt's last
    assert packed.attention_mask.int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 1, 0],
                [1, 1, 0, 0, 1],
            ]
        ]
    ]
    assert not packed.is_causal


def test_padded_prompt_with_two_samples() -> None:
    padded = pad_paths([tree_of([5, 6], [7, 8], [9])])
    assert columns(padded) == [[[5, 6, 7, 8], [5, 6, 9, 0]], [[0, 1, 2, 3]] * 2, [[4, 4, 4, 4]] * 2]
    assert predictions(padded) == [(0, 1, 7), (0, 2, 8), (1, 1, 9)]
    assert padded.is_causal
    assert torch.equal(padded.attention_mask[0, 0], torch.ones(4, 4).tril().bool())


def test_small_trees_share_a_row_first_fit() -> None:
    packed = pack_trees([tree_of([1], [2]), tree_of([3, 3, 3], [4, 4]), tree_of([5, 5], [6])])
    # Sizes 2, 5, 3: the largest sets the width, 3 opens a second row, 2 fits behind it. U stays in the given order.
    assert columns(packed) == [
        [[3, 3, 3, 4, 4], [5, 5, 6, 1, 2]],
        [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]],
        [[5, 5, 5, 5, 5], [3, 3, 3, 5, 5]],
    ]
    assert predictions(packed) == [(1, 3, 2), (0, 2, 4), (0, 3, 4), (1, 1, 6)]


def test_padding_sees_only_itself() -> None:
    packed = pack_trees([tree_of([1, 1], [2, 2]), tree_of([3], [4, 4])])
    assert packed.token_ids.tolist() == [[1, 1, 2, 2], [3, 4, 4, 0]]
    assert packed.attention_mask[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("seed", range(40))
def test_every_token_sees_its_path_and_nothing_else(seed: int) -> None:
    ids = itertools.count(1)  # every token is another number, so a number says which token it is
    trees = [random_tree(seed + i, ids=ids) for i in range(0, 300, 100)]
    packed = pack_trees(trees)
    paths = {
        path[i]: path[: i + 1]
        for tree in trees
        for leaf in tree.valid_leaves
        for path in [tree.token_ids(leaf.segment)]
        for i in range(len(path))
    }
    present = [token for row in packed.token_ids.tolist() for token in row if token]
    assert sorted(present) == sorted(paths)  # once each; what only invalid trajectories hold is not there
    assert len(present) == sum(num_packed_tokens(tree) for tree in trees)
    mask = packed.attention_mask
    assert mask.any(dim=-1).all()
    for row, column in packed.token_ids.nonzero().tolist():
        path = paths[int(packed.token_ids[row, column])]
        assert sorted(packed.token_ids[row][mask[row, 0, column]].tolist()) == sorted(path)
        assert packed.position_ids[row, column] == len(path) - 1


@pytest.mark.parametrize("layout", [pack_trees, pad_paths])
@pytest.mark.parametrize("seed", range(20))
def test_each_sampled_token_is_predicted_by_the_one_before_it(seed: int, layout: type) -> None:
    ids = itertools.count(1)
    trees = [random_tree(seed, ids=ids), random_tree(seed + 100, ids=ids)]
    laid_out = layout(trees)
    before = {}
    for tree in trees:
        for leaf in tree.valid_leaves:
            before.update(itertools.pairwise(reversed(tree.token_ids(leaf.segment))))
    sampled = [
        token
        for tree in trees
        for segment in used_segments(tree)
        for token, action in zip(segment.token_ids, segment.action_mask, strict=True)
        if action
    ]
    assert laid_out.target.tolist() == sampled
    assert laid_out.token_ids[laid_out.row, laid_out.column].tolist() == [before[token] for token in sampled]


def test_padded_size_counts_repeats_and_padding() -> None:
    tree = tree_of([1, 1, 1], [2, 2], [3], [4])
    assert num_padded_tokens(tree) == 3 * 5  # three rows of 3 + 2
    assert pad_paths([tree]).token_ids.shape == (3, 5)
    assert num_packed_tokens(tree) == 3 + 2 + 1 + 1
    tree.leaves[0].stop_reason = StopReason.INVALID
    assert (num_packed_tokens(tree), num_padded_tokens(tree)) == (3 + 1 + 1, 2 * 4)


@pytest.mark.parametrize("layout", [pack_trees, pad_paths])
def test_trees_that_cannot_be_scored_are_refused(layout: type) -> None:
    tree = tree_of([1], [2])
    tree.segments[0].action_mask[0] = 1
    with pytest.raises(ValueError, match="very first token is marked as sampled"):
        layout([tree])
    for trees in ([], [Tree("nothing")], [tree_of([1, 2])]):
        with pytest.raises(ValueError, match="No valid trajectory"):
            layout(trees)


def test_split_into_the_fewest_balanced_parts() -> None:
    trees = [sized(size) for size in (50, 40, 30, 20, 10)]
    # 150 tokens need two parts of 80. Largest first into the emptiest: 50 | 40, 50 | 70, 70 | 70, 80 | 70.
    assert split_by_tokens(trees, 80) == [[0, 3, 4], [1, 2]]
    assert split_by_tokens(trees, 1000) == [[0, 1, 2, 3, 4]]
    # Two parts of 6 would do for 12 tokens only if no tree stood in the way: 3+2+2 is 7, so there are three.
    assert split_by_tokens([sized(size) for size in (3, 3, 2, 2, 2)], 6) == [[0, 4], [1], [2, 3]]


def test_a_tree_is_never_split_and_an_invalid_one_is_left_out() -> None:
    invalid = sized(5)
    invalid.leaves[0].stop_reason = StopReason.INVALID
    assert split_by_tokens([sized(3), sized(90), invalid, sized(3)], 10) == [[0, 3], [1]]
    assert split_by_tokens([], 10) == []
    assert split_by_tokens([invalid], 10) == []
    with pytest.raises(ConfigError, match="max_tokens=0"):
        split_by_tokens([sized(3)], 0)


def test_split_counts_what_it_is_told_to() -> None:
    trees = [tree_of([1] * 8, [2], [3]), tree_of([1] * 8, [2], [3])]
    assert split_by_tokens(trees, 20) == [[0, 1]]  # 2 * 10 unique tokens
    assert split_by_tokens(trees, 20, num_padded_tokens) == [[0], [1]]  # 2 * 9 in padded paths, each


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 60), max_size=15), st.integers(1, 100))
def test_split_covers_every_tree_once_within_the_budget(sizes: list[int], max_tokens: int) -> None:
    parts = split_by_tokens([sized(size) for size in sizes], max_tokens)
    assert sorted(itertools.chain(*parts)) == list(range(len(sizes)))
    assert parts == sorted(sorted(part) for part in parts)
    loads = [sum(sizes[i] for i in part) for part in parts]
    assert all(load <= max_tokens or len(part) == 1 for load, part in zip(loads, parts, strict=True))
    assert max(loads, default=0) - min(loads, default=0) <= max(sizes, default=0)  # balanced to within one tree
