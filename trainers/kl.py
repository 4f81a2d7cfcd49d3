"""The penalty for leaving the reference policy.

With d = log pi - log pi_ref on tokens sampled from pi, after http://joschu.net/blog/kl-approx.html:

    estimator           as a value          expected gradient when differentiated
    k1 = d              unbiased            0
    k2 = d^2 / 2        biased              that of KL(pi || pi_ref)
    k3 = e^-d - 1 + d   unbiased, >= 0      that of KL(pi_ref || pi)

So k1 is right in the reward and useless in the loss, and k2 is the one with the right gradient in the loss. GRPO
(arXiv:2402.03300, equation 4) puts k3 there, which also pulls towards the reference, if by the other divergence.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.masking import require_paths, zero_outside
from agentrl.trainers.ratios import MAX_LOG_RATIO


def k1(log_ratio: Tensor) -> Tensor:
    """d, of any shape."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """d^2 / 2, of any shape."""
    return log_ratio.square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d, of any shape; `expm1` keeps the digits that 1 - 1 would lose where d is small.

    d is held within +-`MAX_LOG_RATIO`, so that one token cannot turn the loss infinite.
    """
    d = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(-d) + d


class KLEstimator(enum.StrEnum):
    """How KL(pi || pi_ref) is estimated from sampled tokens; see the table of this module."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"


class KLPlace(enum.StrEnum):
    """Where the penalty acts."""

    REWARD = "reward"
    """Subtracted from the rewards, without gradient, from the policy before the update; advantages see it."""
    LOSS = "loss"
    """Added to the token losses after clipping, with gradient, from the policy being trained."""


_ESTIMATORS: Mapping[KLEstimator, Callable[[Tensor], Tensor]] = {
    KLEstimator.K1: k1,
    KLEstimator.K2: k2,
    KLEstimator.K3: k3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KLPenalty:
    """A part of a recipe: coef * KL estimate per token.

    Raises:
        ConfigError: A coefficient that is not positive, or k1 in the loss.

    Example:
        KLPenalty(coef=0.04)                                                       # GRPO's
        KLPenalty(coef=0.05, estimator=KLEstimator.K1, place=KLPlace.REWARD)        # TRL's RLOO
    """

    coef: float
    estimator: KLEstimator = KLEstimator.K3
    place: KLPlace = KLPlace.LOSS

    def __post_init__(self) -> None:
        if not self.coef > 0:
            raise ConfigError(f"A KL penalty needs a positive coefficient, got {self.coef}; kl=None switches it off.")
        if self.place is KLPlace.LOSS and self.estimator is KLEstimator.K1:
            raise ConfigError("k1 in the loss has an expected gradient of zero; use k2 or k3, or place='reward'.")

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
        """The penalty of every token.

        Args:
            logprobs: [B, L]; anything outside the mask.
            ref_logprobs: [B, L], no gradient flows into it; anything outside the mask.
            mask: [B, L] bool.

        Returns:
            [B, L], 0 outside the mask.

        Raises:
            TypeError, ValueError: Wrong dtype or shape.
        """
        require_paths(mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
        log_ratio = zero_outside(logprobs, mask) - zero_outside(ref_logprobs, mask).detach()
        return zero_outside(self.coef * _ESTIMATORS[self.estimator](log_ratio), mask)
