"""Clip-Cov and KL-Cov: hold back the few tokens that cost the most entropy. arXiv:2505.22617.

The entropy of a policy falls with the covariance of log-probability and advantage; a few outliers carry most of it.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.masking import require_paths, zero_outside
from agentrl.trainers.ratios import bounded_exp
from agentrl.trainers.surrogates import Clip, Surrogate, SurrogateInputs, TokenLoss


def covariances(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """cov_t = (log pi_t - mean log pi) (A_t - mean A), means over all tokens: equation 10 of arXiv:2505.22617.

    Args:
        logprobs: [B, L] of the whole mini-batch; anything outside the mask.
        advantages: [B, L]; likewise.
        mask: [B, L] bool.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, logprobs=logprobs, advantages=advantages)
    count = mask.sum().clamp(min=1)
    first, second = (zero_outside(x, mask) for x in (logprobs, advantages))
    return zero_outside((first - first.sum() / count) * (second - second.sum() / count), mask)


def _number(fraction: float, mask: Tensor) -> int:
    """At least one token, as in the authors' code."""
    return max(1, int(fraction * int(mask.sum())))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCov(Surrogate):
    """PPO's clip, and a random few of the tokens with a covariance within (low, high) drop out of the loss.

    Raises:
        ConfigError: A fraction outside (0, 1], or an empty interval.
    """

    clip: Clip = field(default_factory=Clip)
    fraction: float = 2e-4
    """Of all tokens of the mini-batch; at least one is dropped if one lies in the interval."""
    low: float = 1.0
    high: float = 5.0
    selected: Tensor | None = field(default=None, compare=False)
    """[B, L] bool over the mini-batch, set by `fit`."""

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        if not self.low < self.high:
            raise ConfigError(f"The interval of covariances is empty: low={self.low}, high={self.high}.")

    @property
    def needs_fit(self) -> bool:
        """Which tokens drop out."""
        return True

    def fit(self, inputs: SurrogateInputs) -> "ClipCov":
        """This surrogate with the tokens of one optimizer step drawn by its seed; clipped tokens are not drawn."""
        cov = covariances(inputs.logprobs, inputs.advantages, inputs.mask)
        clips = self.clip(inputs).metrics
        unclipped = torch.stack(list(clips.values())).sum(dim=0) == 0
        candidates = (inputs.mask & unclipped & (cov > self.low) & (cov < self.high)).flatten().nonzero().flatten()
        generator = torch.Generator().manual_seed(inputs.seed % 2**63)
        order = torch.randperm(len(candidates), generator=generator)[: _number(self.fraction, inputs.mask)]
        selected = torch.zeros_like(inputs.mask).flatten()
        selected[candidates[order.to(candidates.device)]] = True
        return replace(self, selected=selected.view_as(inputs.mask))

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses, clip shares, and the share that was dropped."""
        losses, metrics = self.clip(inputs)
        dropped = _rows_of(self.selected, inputs)
        return TokenLoss(zero_outside(losses, ~dropped), {**metrics, "clip_fraction_cov": dropped.float()})


@dataclass(frozen=True, slots=True, kw_only=True)
class KLCov(Surrogate):
    """The plain ratio, loss_t = -r A, and a penalty on |log r| for the few tokens of the largest covariance.

    |log r| is what the authors' code takes for KL(old || new) on a sampled token. Their configuration has the
    coefficient 0.1, their code's documentation 1.0.

    Raises:
        ConfigError: A fraction outside (0, 1], or a coefficient that is not positive.
    """

    fraction: float = 2e-4
    coef: float = 0.1
    selected: Tensor | None = field(default=None, compare=False)
    """[B, L] bool over the mini-batch, set by `fit`."""

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        if not self.coef > 0:
            raise ConfigError(f"The coefficient must be positive, got {self.coef}.")

    @property
    def needs_fit(self) -> bool:
        """Which tokens are held back."""
        return True

    def fit(self, inputs: SurrogateInputs) -> "KLCov":
        """This surrogate with the tokens of one optimizer step."""
        cov = covariances(inputs.logprobs, inputs.advantages, inputs.mask).masked_fill(~inputs.mask, -torch.inf)
        number = min(_number(self.fraction, inputs.mask), int(inputs.mask.sum()))
        selected = torch.zeros_like(inputs.mask).flatten()
        selected[cov.flatten().topk(number).indices] = True
        return replace(self, selected=selected.view_as(inputs.mask))

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses, and the share that was held back."""
        held = _rows_of(self.selected, inputs)
        losses = -bounded_exp(inputs.log_ratio) * inputs.advantages
        penalty = zero_outside(self.coef * inputs.log_ratio.abs(), held)
        return TokenLoss(losses + penalty, {"kl_cov_fraction": held.float()})


def _rows_of(selected: Tensor | None, inputs: SurrogateInputs) -> Tensor:
    """The selection of a micro-batch; nothing is selected before `fit`."""
    if selected is None:
        return torch.zeros_like(inputs.mask)
    return selected[inputs.rows, : inputs.mask.shape[1]]


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ConfigError(f"The fraction of tokens must be in (0, 1], got {fraction}.")
