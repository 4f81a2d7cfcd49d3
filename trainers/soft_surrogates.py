"""Surrogates that treat far-off ratios otherwise than PPO's clip: no ratio at all, a detached one, a soft gate."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.masking import require_paths, zero_outside
from agentrl.trainers.ratios import bounded_exp
from agentrl.trainers.surrogates import Surrogate, SurrogateInputs, TokenLoss


@dataclass(frozen=True, slots=True)
class PolicyGradient(Surrogate):
    """The score function, loss_t = -A log pi(y_t): REINFORCE (Williams 1992), RLOO (arXiv:2402.14740), ReMax.

    It knows no ratio, so it is right for the first optimizer step after sampling only.
    """

    @property
    def uses_ratio(self) -> bool:
        """No: samples of an older policy would bias it."""
        return False

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses; no metrics."""
        return TokenLoss(-inputs.advantages * inputs.logprobs, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class DetachedRatio(Surrogate):
    """CISPO: loss_t = -sg(clip(r, 1 - low, 1 + high)) A log pi(y_t). MiniMax-M1, arXiv:2506.13585, equations 4 and 5.

    The clip bounds a weight, not the gradient: no token ever falls silent. The paper leaves the lower side open. TRL's
    `epsilon_high` is the absolute bound 1 + high (5.0 recommended), verl's clip ratios are the distances used here.

    Raises:
        ConfigError: A negative bound.
    """

    low: float = math.inf
    high: float = 4.0

    def __post_init__(self) -> None:
        if not (self.low >= 0 and self.high >= 0):
            raise ConfigError(f"Bounds are distances from 1 and not negative, got low={self.low}, high={self.high}.")

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses, and as metric `clip_fraction`, the tokens whose weight was bounded."""
        ratio = bounded_exp(inputs.log_ratio.detach())
        weight = ratio.clamp(1.0 - self.low, 1.0 + self.high)
        return TokenLoss(-weight * inputs.advantages * inputs.logprobs, {"clip_fraction": (weight != ratio).float()})


def soft_gated(log_ratio: Tensor, advantages: Tensor, mask: Tensor, *, tau_pos: float, tau_neg: float) -> Tensor:
    """SAPO's gate: loss_t = -4/tau sigmoid(tau (r - 1)) A. arXiv:2511.20347, equations 6 and 7.

    tau is `tau_pos` where A > 0, `tau_neg` elsewhere. At r = 1 the weight on grad log pi is 1 for every tau, and it
    falls off smoothly on both sides, as r sech^2(tau (r - 1) / 2); the value there is 2 A / tau, not A.

    Args:
        log_ratio: [B, L], with gradient; anything outside the mask.
        advantages: [B, L]; anything outside the mask.
        mask: [B, L] bool.
        tau_pos: Steepness for positive advantages.
        tau_neg: Steepness for the others; larger forgets far-off tokens sooner.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, log_ratio=log_ratio, advantages=advantages)
    advantages = zero_outside(advantages, mask)
    tau = torch.where(advantages > 0, tau_pos, tau_neg)
    gate = torch.sigmoid(tau * (bounded_exp(zero_outside(log_ratio, mask)) - 1.0)) * 4.0 / tau
    return zero_outside(-gate * advantages, mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftGate(Surrogate):
    """SAPO's soft gate in place of a clip (`soft_gated`).

    Raises:
        ConfigError: A temperature that is not positive.
    """

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        if not (self.tau_pos > 0 and self.tau_neg > 0):
            raise ConfigError(f"Gate temperatures must be positive, got {self.tau_pos} and {self.tau_neg}.")

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses, and as metric `gate`, the weight on grad log pi."""
        losses = soft_gated(
            inputs.log_ratio, inputs.advantages, inputs.mask, tau_pos=self.tau_pos, tau_neg=self.tau_neg
        )
        ratio = bounded_exp(inputs.log_ratio.detach())
        tau = torch.where(inputs.advantages > 0, self.tau_pos, self.tau_neg)
        return TokenLoss(losses, {"gate": ratio / torch.cosh(tau * (ratio - 1.0) / 2.0).square()})


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometricClip(Surrogate):
    """GMPO: the geometric mean of a trajectory's clipped token ratios. arXiv:2507.20673, equation 4.

    loss = -A exp(1/L_i sum_t clip(log r_t)), clipped in log space on the side that A pushes to: at most `width` where
    A > 0, at least -`width` where A < 0. The value stands at every token, so it wants a mean over each trajectory.

    Raises:
        ConfigError: A width that is not positive.
    """

    width: float = 0.4

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ConfigError(f"The clip width must be positive, got {self.width}.")

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses, and as metric `clip_fraction`."""
        positive = inputs.advantages > 0
        clipped = torch.where(positive, inputs.log_ratio.clamp(max=self.width), inputs.log_ratio.clamp(min=-self.width))
        clipped = torch.where(inputs.advantages == 0, inputs.log_ratio, clipped)
        lengths = inputs.mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean = zero_outside(clipped, inputs.mask).sum(dim=1, keepdim=True) / lengths
        metrics = {"clip_fraction": (clipped != inputs.log_ratio).float()}
        return TokenLoss(-bounded_exp(mean) * inputs.advantages, metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPreservingClip(Surrogate):
    """AEPO's entropy-balanced clip: PPO's value, but a clipped token keeps its gradient. arXiv:2510.14545, section 4.3.

    Where A > 0 and r > 1 + high, the ratio is (1 + high) r / sg(r): its value is 1 + high and its gradient that of
    (1 + high) log pi. Where A < 0 and r < 1 - low there is none, as in PPO. The idea is GPPO's.

    Raises:
        ConfigError: A negative bound, or a dual clip not above 1.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    """The released code keeps verl's 3.0; the paper has none."""

    def __post_init__(self) -> None:
        if not (self.low >= 0 and self.high >= 0):
            raise ConfigError(f"Bounds are distances from 1 and not negative, got low={self.low}, high={self.high}.")
        if self.dual is not None and not self.dual > 1:
            raise ConfigError(f"The dual clip must exceed 1 (None switches it off), got {self.dual}.")

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses and clip shares."""
        advantages = inputs.advantages
        ratio = bounded_exp(inputs.log_ratio)
        below, above = (advantages < 0) & (ratio < 1.0 - self.low), (advantages > 0) & (ratio > 1.0 + self.high)
        ratio = torch.where(above, (1.0 + self.high) * ratio / ratio.detach(), ratio)
        losses = -torch.where(below, 1.0 - self.low, ratio) * advantages
        metrics = {"clip_fraction_low": below.float(), "clip_fraction_high": above.float()}
        if self.dual is not None:
            losses = torch.minimum(losses, self.dual * advantages.abs())
        return TokenLoss(losses, metrics)
