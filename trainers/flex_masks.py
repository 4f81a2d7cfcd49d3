"""The ancestor mask of packed trees for PyTorch's FlexAttention, which leaves out blocks that it hides altogether.

FlexAttention computes on GPUs what a function of (query, key) leaves visible, in blocks. Which blocks those are it
would find by trying all T * T pairs; here they follow from `subtree_end`, so nothing of that size is ever made.
"""

import functools
import warnings

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward

from agentrl.trainers.packing import PackedTrees

_DEVICES = ("cuda",)
"""Where FlexAttention can compute gradients."""
_BLOCK_TOKENS = 128
_TRIAL_TOKENS = 300
_SAME = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference from `sdpa`, of values around 1, by which a trial passes; GPUs may round float32 to TF32."""


def takes_block_masks(decoder: PreTrainedModel) -> bool:
    """Whether FlexAttention works for this model here; tried once for each kind of numbers, with a warning if not."""
    config = decoder.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if decoder.device.type not in _DEVICES or decoder.dtype not in _SAME or _has_attention_dropout(config.to_dict()):
        return False
    return _passes_trial(decoder.device, decoder.dtype, head_size)


def tree_block_mask(packed: PackedTrees) -> BlockMask:
    """The mask [R, 1, T, T] in blocks of 128 queries and 128 keys.

    A block of keys before the queries' own is visible to some of them if one of its keys has descendants there, and to
    all of them if all its keys have descendants up to the last.
    """
    num_rows, length = packed.subtree_end.shape
    end = packed.subtree_end
    num_blocks = -(-length // _BLOCK_TOKENS)
    room = num_blocks * _BLOCK_TOKENS - length
    by_block = pad(end, (0, room)).view(num_rows, 1, num_blocks, _BLOCK_TOKENS)
    latest, earliest = by_block.amax(-1), by_block.amin(-1)
    number = torch.arange(num_blocks, device=end.device)
    first = number[:, None] * _BLOCK_TOKENS
    before = number[:, None] > number
    whole = before & (earliest >= first + _BLOCK_TOKENS)  # never in a last block that is not full, as in PyTorch
    partial = (before & (latest > first) & ~whole) | (number[:, None] == number)

    def is_visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[row, key])

    return BlockMask.from_kv_blocks(
        *_listed(partial[:, None]),
        *_listed(whole[:, None]),
        BLOCK_SIZE=_BLOCK_TOKENS,
        mask_mod=is_visible,
        seq_lengths=(length, length),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries, how many blocks of keys are chosen, and their numbers, those first."""
    return blocks.sum(-1, dtype=torch.int32), blocks.int().argsort(dim=-1, descending=True, stable=True).int()


def _has_attention_dropout(config: dict[str, object]) -> bool:
    return any(config.get(name) for name in ("attention_dropout", "attn_pdrop"))


@functools.cache
def _passes_trial(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Compares FlexAttention with `sdpa`, values and gradients, under the mask of three branches."""
    try:
        gap = _trial_gap(device, dtype, head_size)
    except Exception as error:  # a compiler that is missing, a shape without a kernel: the reason is the user's to read
        problem = f"it raised {type(error).__name__} ({str(error).splitlines()[0] if str(error) else 'no message'})"
    else:
        if gap <= _SAME[dtype]:
            return True
        problem = f"it differs from sdpa by {gap:.2g}"
    warnings.warn(
        f"FlexAttention does not work on {device} for {dtype} and heads of {head_size}: {problem}. Token trees go "
        "through sdpa with a dense mask, which is slower and takes more memory for the same result.",
        stacklevel=2,
    )
    return False


def _trial_gap(device: torch.device, dtype: torch.dtype, head_size: int) -> float:
    """The largest difference of an output or a gradient."""
    generator = torch.Generator().manual_seed(0)
    column = torch.arange(_TRIAL_TOKENS)
    end = torch.where(column < 40, _TRIAL_TOKENS, torch.where(column < 180, 180, _TRIAL_TOKENS))[None].to(device)
    packed = PackedTrees(token_ids=end, position_ids=end, subtree_end=end, row=end, column=end, target=end)
    query, key, value = (
        torch.randn(1, heads, _TRIAL_TOKENS, head_size, generator=generator).to(device, dtype).requires_grad_()
        for heads in (2, 1, 1)
    )
    weight = torch.randn(1, _TRIAL_TOKENS, 2, head_size, generator=generator).to(device, dtype)

    def results(output: Tensor) -> list[Tensor]:
        return [output, *torch.autograd.grad((output * weight).sum(), (query, key, value))]

    given, _ = flex_attention_forward(torch.nn.Module(), query, key, value, tree_block_mask(packed))
    expected = scaled_dot_product_attention(query, key, value, attn_mask=packed.attention_mask, enable_gqa=True)
    pairs = zip(results(given), results(expected.transpose(1, 2)), strict=True)
    return max(float((one - other).detach().float().abs().max()) for one, other in pairs)
