"""The path layout: what is numbered, in which order, and what a row holds."""

import pytest
import torch
from tree_cases import random_tree

from agentrl.trainers.batch import lay_out_paths, used_segments
from agentrl.trajectory import Leaf, StopReason, Tree


def branching_tree() -> Tree:
    """The tree of `agentrl.trajectory`: leaf A alone, leaves B and C behind a shared tool result."""
    tree = Tree("t")
    tree.add(None, "prompt", 0, [1, 2])
    tree.add(0, "assistant", 0, [10, 11], logprobs=[-1.0, -2.0], entropies=[0.1, 0.2])
    tree.add(1, "environment", 0, [3])
    tree.add(2, "assistant", 1, [12], logprobs=[-3.0], entropies=[0.3])
    tree.add(0, "assistant", 0, [13, 14], action_mask=[1, 0], logprobs=[-4.0, 0.0], entropies=[0.4, 0.0])
    tree.add(4, "environment", 0, [3, 4])
    tree.add(5, "assistant", 1, [15], logprobs=[-5.0], raw_logprobs=[-5.5], entropies=[0.5])
    tree.add(5, "assistant", 1, [16, 17], logprobs=[-6.0, -7.0], entropies=[0.6, 0.7])
    tree.leaves = [
        Leaf(3, StopReason.ANSWERED, 1.0, True),
        Leaf(6, StopReason.MAX_TURNS, 0.0, False),
        Leaf(7, StopReason.ANSWERED, 0.5, False),
    ]
    return tree


def test_rows_of_a_branching_tree() -> None:
    batch = lay_out_paths([branching_tree()])
    # Sampled tokens, segment by segment: 10 is number 0, 11: 1, 12: 2, 13: 3, 15: 4, 16: 5, 17: 6. 14 was forced: none.
    assert batch.token_index.tolist() == [[0, 1, 2], [3, 4, 0], [3, 5, 6]]
    assert batch.mask.tolist() == [[True, True, True], [True, True, False], [True, True, True]]
    assert batch.turn.tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert batch.logprobs.tolist() == [[-1.0, -2.0, -3.0], [-4.0, -5.5, 0.0], [-4.0, -6.0, -7.0]]  # -5.5: before top-p
    assert torch.equal(batch.entropies, torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.0], [0.4, 0.6, 0.7]]))
    assert batch.rewards.tolist() == [1.0, 0.0, 0.5]
    assert batch.group.tolist() == [0, 0, 0]
    assert batch.truncated.tolist() == [False, True, False]
    assert batch.lengths.tolist() == [3, 2, 3]


def test_an_invalid_trajectory_leaves_no_trace() -> None:
    tree = branching_tree()
    tree.leaves[0].stop_reason = StopReason.INVALID
    batch = lay_out_paths([tree])
    # Segments 1 to 3 belong to the invalid trajectory alone, so numbering begins at token 13.
    assert batch.token_index.tolist() == [[0, 1, 0], [0, 2, 3]]
    assert [segment.id for segment in used_segments(tree)] == [0, 4, 5, 6, 7]
    tree.leaves[1].stop_reason = StopReason.INVALID  # what it shares with the last one stays
    assert [segment.id for segment in used_segments(tree)] == [0, 4, 5, 7]
    assert lay_out_paths([tree]).token_index.tolist() == [[0, 1, 2]]


def test_trees_are_numbered_one_after_the_other() -> None:
    empty = branching_tree()
    for leaf in empty.leaves:
        leaf.stop_reason = StopReason.INVALID
    batch = lay_out_paths([branching_tree(), empty, branching_tree()])
    assert batch.group.tolist() == [0, 0, 0, 2, 2, 2]  # the tree without a valid trajectory keeps its number
    assert batch.token_index[3:].tolist() == [[7, 8, 9], [10, 11, 0], [10, 12, 13]]
    with pytest.raises(ValueError, match="No valid trajectory"):
        lay_out_paths([empty])


@pytest.mark.parametrize("seed", range(20))
def test_every_number_is_used_and_every_row_reads_its_path(seed: int) -> None:
    trees = [random_tree(seed), random_tree(seed + 100)]
    batch = lay_out_paths(trees)
    by_number = [
        segment.token_ids[i]
        for tree in trees
        for segment in used_segments(tree)
        for i, action in enumerate(segment.action_mask)
        if action
    ]
    assert batch.token_index[batch.mask].unique().tolist() == list(range(len(by_number)))
    leaves = [(tree, leaf) for tree in trees for leaf in tree.valid_leaves]
    for row, (tree, leaf) in enumerate(leaves):
        path = tree.path(leaf.segment)
        sampled = [t for s in path for t, action in zip(s.token_ids, s.action_mask, strict=True) if action]
        assert [by_number[i] for i in batch.token_index[row][batch.mask[row]]] == sampled


def test_rows_select_and_reorder() -> None:
    batch = lay_out_paths([branching_tree()])
    part = batch.rows(torch.tensor([2, 0])).to("cpu")
    assert part.rewards.tolist() == [0.5, 1.0]
    assert part.token_index.tolist() == [[3, 5, 6], [0, 1, 2]]
    assert torch.equal(batch.rows(batch.rewards > 0).group, torch.tensor([0, 0]))
