"""Drawing tokens from logits, one independent random stream per sequence.

Axes: N sequences, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.policies.core import Sampling


@dataclass(frozen=True, slots=True)
class Draw:
    """One token for each of N sequences."""

    tokens: Tensor
    """[N] int64."""
    logprobs: Tensor
    """[N] float32: under the distribution drawn from; 0 for greedy decoding, which draws with certainty."""
    raw_logprobs: Tensor
    """[N] float32: under softmax(logits / temperature), before top-k and top-p (temperature 1 if greedy)."""
    entropies: Tensor
    """[N] float32: of softmax(logits / temperature) over the whole vocabulary, in nats."""


def draw_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Draw:
    """Draws by inverting the cumulative distribution at the given uniform numbers.

    Args:
        logits: [N, V].
        uniforms: [N] float32 in [0, 1), one from each sequence's own stream.
        sampling: Temperature, top-p, top-k.

    Raises:
        ValueError: A logit is NaN, or a whole row is -inf: the model is broken.
    """
    greedy = sampling.temperature == 0.0
    logits = logits.float() if greedy else logits.float() / sampling.temperature
    raw = torch.log_softmax(logits, dim=-1)
    probabilities = raw.exp()
    # p * log p -> 0 as p -> 0, also where a model masks tokens with -inf.
    entropies = -(probabilities * raw.clamp_min(-1e4)).sum(dim=-1)
    if not torch.isfinite(entropies).all():
        raise ValueError(
            "The model returned NaN logits. Check the weights, or use float32 or bfloat16 instead of float16."
        )
    if greedy:
        tokens = raw.argmax(dim=-1)
        return Draw(tokens, torch.zeros_like(entropies), _pick(raw, tokens), entropies)
    kept = _truncated(raw, sampling) if sampling.truncates else raw
    tokens = _invert(kept.exp(), uniforms)
    return Draw(tokens, _pick(kept, tokens), _pick(raw, tokens), entropies)


def _invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token whose stretch of the cumulative distribution holds each uniform number."""
    cumulative = probabilities.double().cumsum(dim=-1)
    target = uniforms.double()[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, target, right=True)[:, 0]
    # Rounding can place the target on the very end; step back to the last token that has any probability.
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(dim=-1)
    return torch.minimum(tokens, last)


def _truncated(raw: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities after top-k, then top-p, renormalised. Ties at the border keep the smaller token id."""
    ordered, order = raw.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
    if sampling.top_p < 1.0:
        inside = torch.log_softmax(ordered.masked_fill(~keep, -torch.inf), dim=-1).exp()
        before = inside.cumsum(dim=-1) - inside  # the token that crosses the border is kept
        keep &= before < sampling.top_p
    kept = ordered.masked_fill(~keep, -torch.inf)
    return torch.log_softmax(torch.empty_like(raw).scatter_(-1, order, kept), dim=-1)


def _pick(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None])[:, 0]
