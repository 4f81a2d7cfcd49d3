"""Attention over packed trees that skips what the ancestor mask hides.

A dense mask makes a model compute all T * T scores of a row, also those between branches that never meet: for eight
samples of one prompt about two thirds. Here the queries are cut into blocks, mostly one branch each, and a block is
given only the keys that at least one of its queries sees. The result is the same, softmax term by softmax term.

`install` enters this as an attention implementation of `transformers`. It acts on the masks of
`run_body` and leaves every other call, generation included, to `sdpa`. On GPUs the dense mask goes to sdpa, unless the
model has been found to work with FlexAttention (`model_probe.why_not_flex`), whose blocks are those of `flex_masks`.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agentrl.trainers.flex_masks import BLOCK_TOKENS, tree_block_mask
from agentrl.trainers.packing import PackedTrees

NAME = "agentrl_tree"
FLEX_NAME = "agentrl_tree_flex"
"""The same, with FlexAttention for packed trees of more than one of its blocks."""
TAKES_ANY_MASK = ("eager", "sdpa", NAME, FLEX_NAME)
"""Attention implementations of `transformers` that follow a mask per pair of tokens as it is."""
_BLOCK_TOKENS = 192  # fastest of 128, 192, 256 on CPU, for 600-token prompts with branches of 144
_COMPILED_VARIANTS = 64  # of FlexAttention: gradients or not, one row or several, for each model in a run
_WORTHWHILE = 0.6  # share of the dense scores above which many small calls cost more than they save


@dataclass(frozen=True, slots=True)
class QueryBlocks:
    """The queries of all rows, one row behind the other, cut into blocks.

    Example:
        A prompt of two tokens with two samples of one: sizes = [2, 1, 1], keys = [0, 1, 0, 1, 2, 0, 1, 3],
        num_keys = [2, 3, 3].
    """

    sizes: list[int]
    """Queries of each block; they add up to R * T."""
    num_keys: list[int]
    keys: Tensor
    """int64: the columns that each block sees, one block behind the other."""
    biases: list[Tensor]
    """For each block [1, 1, queries, keys]: 0 where visible, else the lowest number of the dtype."""
    _stacked: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def num_scores(self) -> int:
        """Scores that are computed for each head."""
        return sum(size * keys for size, keys in zip(self.sizes, self.num_keys, strict=True))

    def stacked_biases(self, groups: int) -> list[Tensor]:
        """The biases [1, 1, groups * queries, keys] for query heads that share keys; made once for all layers."""
        if groups not in self._stacked:
            self._stacked[groups] = [bias.repeat(1, 1, groups, 1) for bias in self.biases]
        return self._stacked[groups]


_PREPARED: MutableMapping[Tensor, QueryBlocks] = WeakTensorKeyDictionary()


def install(model: PreTrainedModel) -> None:
    """Makes a model that uses `sdpa` skip hidden blocks; a model with another implementation is left as it is."""
    if model.config._attn_implementation == "sdpa":
        for name in (NAME, FLEX_NAME):
            AttentionInterface.register(name, _tree_attention)
            AttentionMaskInterface.register(name, sdpa_mask)
        model.set_attn_implementation(NAME)


def run_body(decoder: PreTrainedModel, packed: PackedTrees) -> Tensor:
    """Last hidden states [R, T, H] of packed or padded trees, from the model without its head.

    Args:
        decoder: A causal LM; `install` makes it faster, not different.
        packed: On the model's device.
    """
    body = decoder.base_model
    if packed.is_causal:
        hidden: Tensor = body(input_ids=packed.token_ids, use_cache=False).last_hidden_state
        return hidden
    hidden = body(
        input_ids=packed.token_ids,
        attention_mask=_mask(decoder, packed),
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden


def _mask(decoder: PreTrainedModel, packed: PackedTrees) -> Tensor | BlockMask:
    """What the model's attention implementation understands best."""
    if decoder.config._attn_implementation == FLEX_NAME and packed.token_ids.shape[1] > BLOCK_TOKENS:
        return tree_block_mask(packed.subtree_end)
    visible = packed.attention_mask
    mask = torch.zeros(visible.shape, dtype=decoder.dtype, device=visible.device)
    mask.masked_fill_(~visible, torch.finfo(decoder.dtype).min)
    _prepare(mask, packed)
    return mask


def _prepare(mask: Tensor, packed: PackedTrees) -> None:
    """Announces that `mask` is the mask of `packed`, for as long as the tensor lives."""
    if mask.device.type == "cpu":
        blocks = cut_blocks(packed, mask.dtype)
        if blocks.num_scores <= _WORTHWHILE * mask.numel():
            _PREPARED[mask] = blocks


def cut_blocks(packed: PackedTrees, dtype: torch.dtype) -> QueryBlocks:
    """Cuts the queries where branches begin, long branches into equal parts, and joins short neighbors."""
    num_rows, length = packed.token_ids.shape
    end = (packed.subtree_end + length * torch.arange(num_rows)[:, None]).flatten()
    column = torch.arange(len(end))
    begins = torch.cat([end.new_ones(1, dtype=torch.bool), end[1:] != end[:-1]]).nonzero().flatten()
    sizes = _even_sizes(begins.diff(append=begins.new_tensor([len(end)])).tolist())
    keys: list[Tensor] = []
    biases: list[Tensor] = []
    start = 0
    for size in sizes:
        query = column[start : start + size, None]
        seen = ((column < start + size) & (end > start)).nonzero().flatten()
        hidden = (seen > query) | (query >= end[seen])
        bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
        keys.append(seen)
        biases.append(bias[None, None])
        start += size
    return QueryBlocks(sizes, [len(seen) for seen in keys], torch.cat(keys), biases)


def _even_sizes(runs: list[int]) -> list[int]:
    sizes: list[int] = []
    for run in runs:
        parts = -(-run // _BLOCK_TOKENS)
        for part in range(parts):
            size = run * (part + 1) // parts - run * part // parts
            if sizes and sizes[-1] + size <= _BLOCK_TOKENS:
                sizes[-1] += size
            else:
                sizes.append(size)
    return sizes


def _tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Takes [R, heads, T, head size] and returns [R, T, heads, head size], as `transformers` wants it."""
    if isinstance(attention_mask, BlockMask):
        # Past PyTorch's limit of 8 compiled variants it would compute, with hardly a word, all T * T scores.
        with torch._dynamo.config.patch(recompile_limit=_COMPILED_VARIANTS):
            return flex_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)[0], None
    blocks = None if attention_mask is None else _PREPARED.get(attention_mask)
    if blocks is None or kwargs.get("position_bias") is not None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    num_rows, num_heads, length, head_size = query.shape
    groups = num_heads // key.shape[1]
    parts = zip(
        torch.split(_one_row(query), blocks.sizes, dim=2),
        torch.split(_one_row(key).index_select(2, blocks.keys), blocks.num_keys, dim=2),
        torch.split(_one_row(value).index_select(2, blocks.keys), blocks.num_keys, dim=2),
        blocks.stacked_biases(groups),
        strict=True,
    )
    outputs = [
        # Query heads that share keys are stacked as queries of one head, so that no key is copied.
        scaled_dot_product_attention(
            q.reshape(1, num_heads // groups, -1, head_size),
            k,
            v,
            attn_mask=bias,
            dropout_p=dropout,
            scale=scaling,
        ).reshape(1, num_heads, -1, value.shape[-1])
        for q, k, v, bias in parts
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1).reshape(num_rows, length, num_heads, -1), None


def _one_row(states: Tensor) -> Tensor:
    """[R, heads, T, head size] as [1, heads, R * T, head size]."""
    return states.transpose(0, 1).flatten(1, 2)[None]
