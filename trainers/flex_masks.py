"""The ancestor mask of packed trees for PyTorch's FlexAttention, which leaves out blocks that it hides altogether.

FlexAttention computes on GPUs what a function of (query, key) leaves visible, in blocks. Which blocks those are it
would find by trying all T * T pairs; here they follow from `subtree_end`, so nothing of that size is ever made.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

BLOCK_TOKENS = 128
"""Queries, and keys, of a block."""


def tree_block_mask(subtree_end: Tensor) -> BlockMask:
    """The mask [R, 1, T, T] of packed rows.

    A block of keys before the queries' own is visible to some of them if one of its keys has descendants there, and to
    all of them if all its keys have descendants up to the last.

    Args:
        subtree_end: [R, T] int64 (see `PackedTrees`).
    """
    num_rows, length = subtree_end.shape
    num_blocks = -(-length // BLOCK_TOKENS)
    room = num_blocks * BLOCK_TOKENS - length
    by_block = pad(subtree_end, (0, room)).view(num_rows, 1, num_blocks, BLOCK_TOKENS)
    latest, earliest = by_block.amax(-1), by_block.amin(-1)
    number = torch.arange(num_blocks, device=subtree_end.device)
    first = number[:, None] * BLOCK_TOKENS
    before = number[:, None] > number
    whole = before & (earliest >= first + BLOCK_TOKENS)  # never in a last block that is not full, as in PyTorch
    partial = (before & (latest > first) & ~whole) | (number[:, None] == number)

    def is_visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < subtree_end[row, key])

    return BlockMask.from_kv_blocks(
        *_listed(partial[:, None]),
        *_listed(whole[:, None]),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=is_visible,
        seq_lengths=(length, length),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries, how many blocks of keys are chosen, and their numbers, those first."""
    return blocks.sum(-1, dtype=torch.int32), blocks.int().argsort(dim=-1, descending=True, stable=True).int()
