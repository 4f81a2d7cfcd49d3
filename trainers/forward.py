"""Log-probabilities of the sampled tokens of token trees, with gradient, every unique token computed once.

The decoder body runs on packed trees through its ordinary `attention_mask` and `position_ids`; the head then runs on
the predecessors of sampled tokens only, a chunk at a time, so that [tokens, vocabulary] never exists as a whole.
What a model can do is found out once, by trying: see `model_probe`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from agentrl.errors import ConfigError
from agentrl.trainers.model_probe import LogitTransform, check_head, find_decoder, why_not_flex, why_not_packable
from agentrl.trainers.packing import (
    PackedTrees,
    num_packed_tokens,
    num_padded_tokens,
    pack_trees,
    pad_paths,
    split_by_tokens,
)
from agentrl.trainers.tree_attention import FLEX_NAME, NAME, install, run_body
from agentrl.trajectory import Tree

FLEX_DEVICES = ("cuda",)
"""Kinds of devices on which FlexAttention has gradients."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One value per unique sampled token, numbered as in `lay_out_paths`; float32, or float64 for such a model."""

    logprobs: Tensor
    """[U] with gradient: ln of the probability of the token, over the whole vocabulary, at the given temperature."""
    entropies: Tensor
    """[U] in nats, of the same distribution; without gradient unless asked for."""


class TokenScorer:
    """The training-side forward pass of a causal language model.

    A model that uses `sdpa` is switched to an attention implementation that skips hidden blocks (`tree_attention`). A
    model whose layers cannot take an ancestor mask gets every path padded instead, with one warning. Training or
    evaluation mode, gradients on or off and autocast are the caller's choice at each call.

    Args:
        model: A `transformers` causal LM, or a wrapper that changes it in place, such as a LoRA `PeftModel`.
        max_logits: Largest number of logits that exist at a time; the default is 32 MB in float32 on a CPU (larger
            blocks leave the allocator's heap, measured 20 % slower), 512 MiB on an accelerator.

    Raises:
        ConfigError: There is no `transformers` model inside, or its logits are not a function of its head's output
            that is known here.
    """

    def __init__(self, model: torch.nn.Module, *, max_logits: int | None = None) -> None:
        self.model = model
        self._decoder: PreTrainedModel = find_decoder(model)
        self._max_logits = max_logits or (8_000_000 if self._decoder.device.type == "cpu" else 2**27)
        self._logit_transform = LogitTransform.of(self._decoder)
        check_head(model, self._decoder, self._logit_transform)
        obstacle = why_not_packable(self._decoder)
        self.packs = obstacle is None
        """Whether trees are packed; otherwise their paths are padded."""
        if obstacle is None:
            install(self._decoder)
            self._prefer_flex()
        else:
            warnings.warn(
                f"{type(self._decoder).__name__} cannot run packed token trees: {obstacle}. Every trajectory goes "
                "through the model by itself, which is slower for the same result.",
                stacklevel=2,
            )

    def _prefer_flex(self) -> None:
        """Uses FlexAttention where there are kernels for it, unless they do not work for this model."""
        decoder = self._decoder
        if decoder.device.type not in FLEX_DEVICES or decoder.config._attn_implementation != NAME:
            return
        obstacle = why_not_flex(decoder)
        if obstacle is None:
            decoder.set_attn_implementation(FLEX_NAME)
        else:
            warnings.warn(
                f"{type(decoder).__name__} cannot use FlexAttention on {decoder.device}: {obstacle}. Token trees go "
                "through sdpa with a dense mask, which is slower and takes more memory for the same result.",
                stacklevel=3,
            )

    def pack(self, trees: Sequence[Tree]) -> PackedTrees:
        """Lays trees out in the way this model can run them fastest."""
        return pack_trees(trees) if self.packs else pad_paths(trees)

    def split(self, trees: Sequence[Tree], max_tokens: int) -> list[list[int]]:
        """`split_by_tokens`, counting the tokens that this model really computes."""
        return split_by_tokens(trees, max_tokens, num_packed_tokens if self.packs else num_padded_tokens)

    def score(self, trees: Sequence[Tree], *, temperature: float = 1.0) -> TokenScores:
        """Scores the sampled tokens of the valid trajectories of `trees`, in one forward pass.

        Args:
            trees: At least one with a valid trajectory.
            temperature: Divides the logits, as when the tokens were sampled.

        Raises:
            ConfigError: A temperature that is not positive.
            ValueError: No sampled token, or one that nothing predicts.
        """
        return self.score_packed(self.pack(trees), temperature=temperature)

    def score_packed(self, packed: PackedTrees, *, temperature: float = 1.0) -> TokenScores:
        """`score` for trees that are laid out already."""
        if not temperature > 0.0:
            raise ConfigError(
                f"Log-probabilities need a positive temperature, got {temperature}: at 0 every token has probability 0 "
                "or 1. Train on samples drawn at a temperature such as 1."
            )
        packed = packed.to(self._decoder.device)
        hidden = self._states(packed)
        size = max(1, self._max_logits // self._decoder.config.get_text_config().vocab_size)
        chunks = list(zip(hidden.split(size), packed.target.split(size), strict=True))  # type: ignore[no-untyped-call]
        if len(chunks) == 1:
            logprobs, entropies = self._score_chunk(hidden, packed.target, temperature)
            return TokenScores(logprobs, entropies)
        scores = [
            # The logits of a chunk are computed again in the backward pass, instead of kept from here to there.
            checkpoint(self._score_chunk, *chunk, temperature, use_reentrant=False)
            for chunk in chunks
        ]
        return TokenScores(*(torch.cat(column) for column in zip(*scores, strict=True)))

    def states(self, trees: Sequence[Tree]) -> Tensor:
        """[U, H] with gradient: the hidden state from which each unique sampled token was drawn."""
        return self._states(self.pack(trees).to(self._decoder.device))

    def distributions(self, trees: Sequence[Tree], *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The whole distributions from which the sampled tokens of `trees` were drawn, held in memory at once.

        Returns:
            [U, V] with gradient: their log-probabilities; and [U] int64: which tokens were drawn.
        """
        packed = self.pack(trees).to(self._decoder.device)
        return self._distribution(self._states(packed), temperature), packed.target

    def _states(self, packed: PackedTrees) -> Tensor:
        return run_body(self._decoder, packed)[packed.row, packed.column]

    def _distribution(self, hidden: Tensor, temperature: float) -> Tensor:
        logits = self._logit_transform(self._decoder.get_output_embeddings()(hidden))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if temperature != 1.0:
            logits = logits / temperature
        return torch.log_softmax(logits, dim=-1)

    def _score_chunk(self, hidden: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        distribution = self._distribution(hidden, temperature)
        logprobs = distribution.gather(-1, target[:, None])[:, 0]
        with torch.no_grad():
            entropies = -(distribution.exp() * distribution).sum(dim=-1)
        return logprobs, entropies
