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


def sequence_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The geometric mean of a trajectory's token ratios, s_i = exp(1/L_i sum_t log r_(i,t)): GSPO, arXiv:2507.18071.

    Without the exponent 1/L_i this would be the ratio of the joint probabilities, `product_level`.

    Args:
        log_ratio: [B, L], with gradient; anything outside the mask.
        mask: [B, L] bool.

    Returns:
        [B, L]: log s_i at every token of trajectory i.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> row = torch.tensor([[0.1, -0.05, 0.02]], dtype=torch.float64)
    >>> round(float(sequence_level(row, torch.ones(1, 3, dtype=torch.bool)).exp()[0, 0]), 6)
    1.023608
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return product_level(log_ratio, mask) / lengths


def product_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The ratio of the joint probabilities, S_i = exp(sum_t log r_(i,t)); TRL's RLOO clips it.

    Args:
        log_ratio: [B, L], with gradient; anything outside the mask.
        mask: [B, L] bool.

    Returns:
        [B, L]: log S_i at every token of trajectory i.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, log_ratio=log_ratio)
    return zero_outside(log_ratio, mask).sum(dim=1, keepdim=True).expand(mask.shape)


def mean_level(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The arithmetic mean of a trajectory's token ratios, 1/L_i sum_t r_(i,t): GRPO-S, arXiv:2508.04349.

    Args:
        log_ratio: [B, L], with gradient; anything outside the mask.
        mask: [B, L] bool.

    Returns:
        [B, L]: the log of that mean at every token of trajectory i; 0 in a trajectory without a token.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, log_ratio=log_ratio)
    ratio = zero_outside(bounded_exp(zero_outside(log_ratio, mask)), mask)
    mean = ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    filled = mask.any(dim=1, keepdim=True)
    return zero_outside(torch.log(torch.where(filled, mean, 1.0)), filled).expand(mask.shape)


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


@dataclass(frozen=True, slots=True)
class SequenceRatio(RatioLevel):
    """GSPO's geometric mean, the same for all tokens of a trajectory (`sequence_level`)."""

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """[B, L] from the whole rows."""
        return sequence_level(log_ratio, mask)


@dataclass(frozen=True, slots=True)
class SequenceTokenRatio(RatioLevel):
    """GSPO-token: the value of `SequenceRatio`, the gradient of each token's own. arXiv:2507.18071, equation 14.

    s_(i,t) = sg(s_i) * pi_t / sg(pi_t): where all tokens of a trajectory have one advantage, loss and gradient equal
    GSPO's under a mean over tokens; where they have not, each token is pushed by its own.
    """

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """[B, L] from the whole rows."""
        own = token_level(log_ratio, mask)
        return sequence_level(log_ratio, mask).detach() + own - own.detach()


@dataclass(frozen=True, slots=True)
class ProductRatio(RatioLevel):
    """The ratio of whole trajectories (`product_level`); on long ones it leaves any clip after one optimizer step."""

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """[B, L] from the whole rows."""
        return product_level(log_ratio, mask)


@dataclass(frozen=True, slots=True)
class MeanRatio(RatioLevel):
    """GRPO-S's arithmetic mean, the same for all tokens of a trajectory (`mean_level`)."""

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """[B, L] from the whole rows."""
        return mean_level(log_ratio, mask)
