"""Importance ratios: at which level the new policy is compared with the one that sampled.

A level maps token log-ratios log pi_new - log pi_old [B, L] to the log-ratios that the surrogate sees, again [B, L];
one that compares whole sequences writes its value into every token of the row. Everything stays in log space until
the surrogate needs a ratio.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agentrl.trainers.masking import require_paths, zero_outside

MAX_LOG_RATIO = 20.0
"""Log-ratios are treated as at most this far from 0 when exponentiated, as in verl: exp(20) = 4.9e8 is finite in
float32 together with its gradient, which is 0 beyond. No paper states such a bound; it is far outside every clip."""


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp(x) for |x| <= `MAX_LOG_RATIO`, constant beyond."""
    return torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))


def token_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Every token has its own ratio pi_new(y_t) / pi_old(y_t): PPO (arXiv:1707.06347), GRPO and most of their heirs.

    Args:
        log_ratio: [B, L], with gradient.
        mask: [B, L] bool.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, log_ratio=log_ratio)
    return zero_outside(log_ratio, mask)


class RatioLevel(Protocol):
    """A part of a recipe: token log-ratios and mask in, the surrogate's log-ratios out."""

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """[B, L] from [B, L]; rows are complete, `log_ratio` is 0 outside the mask, the result need not be."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRatio(RatioLevel):
    """One ratio per token (`token_level`)."""

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """The log-ratios themselves."""
        return token_level(log_ratio, mask)
