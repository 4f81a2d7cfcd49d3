"""Surrogates: the per-token loss whose gradient is the policy gradient, and what keeps its steps small."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.masking import require_paths, zero_outside
from agentrl.trainers.ratios import bounded_exp


class TokenLoss(NamedTuple):
    """What a surrogate returns; reduction is not its business."""

    values: Tensor
    """[B, L]: loss of each token, before weighting."""
    metrics: dict[str, Tensor]
    """Per-token numbers [B, L] whose mean over the tokens is worth watching."""


def clipped(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, *, low: float, high: float, dual: float | None = None
) -> TokenLoss:
    """PPO's clipped surrogate with independent bounds, and optionally the dual clip.

    With r = exp(log_ratio): loss_t = -min(r A, clip(r, 1 - low, 1 + high) A); with `dual` = c at most c |A| for A < 0.

    The clip does not bound the ratio; it takes away the gradient of tokens that have moved far enough in the
    direction A asks for. Equal bounds: PPO, arXiv:1707.06347, equation 7; high > low: DAPO, arXiv:2503.14476,
    section 3.1; dual clip, for negative A and a ratio that exploded: arXiv:1912.09729.

    Args:
        log_ratio: [B, L], with gradient; anything outside the mask.
        advantages: [B, L]; anything outside the mask.
        mask: [B, L] bool.
        low: Room below 1; `inf` for no bound.
        high: Room above 1; `inf` for no bound.
        dual: Largest ratio that a negative advantage is multiplied by; None for no limit.

    Returns:
        Losses [B, L], 0 in value and gradient outside the mask, and as metrics 1 where the gradient was cut:
        `clip_fraction_low` (A < 0, r < 1 - low), `clip_fraction_high` (A > 0, r > 1 + high) and with `dual`
        `clip_fraction_dual` (A < 0, r > c).

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, log_ratio=log_ratio, advantages=advantages)
    ratio = bounded_exp(zero_outside(log_ratio, mask))
    losses = -torch.minimum(ratio * advantages, ratio.clamp(1.0 - low, 1.0 + high) * advantages)
    metrics = {
        "clip_fraction_low": (advantages < 0) & (ratio < 1.0 - low),
        "clip_fraction_high": (advantages > 0) & (ratio > 1.0 + high),
    }
    if dual is not None:
        losses = torch.minimum(losses, dual * advantages.abs())  # never bites for A > 0, whose loss is negative
        metrics["clip_fraction_dual"] = (advantages < 0) & (ratio > dual)
    return TokenLoss(zero_outside(losses, mask), {name: cut.to(losses.dtype) for name, cut in metrics.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateInputs:
    """What a surrogate sees of the tokens; every [B, L] tensor is 0 outside the mask."""

    log_ratio: Tensor
    """[B, L] at the recipe's ratio level, with gradient."""
    advantages: Tensor
    """[B, L]."""
    mask: Tensor
    """[B, L] bool: tokens that count in the loss."""
    logprobs: Tensor
    """[B, L] under the policy being trained, with gradient."""
    old_logprobs: Tensor
    """[B, L] under the policy that the ratio compares with."""
    rows: Tensor
    """[B] int64: which trajectories of the mini-batch these are."""
    seed: int
    """Names the random stream of this optimizer step."""


class Surrogate(Protocol):
    """A part of a recipe: the loss of every token. Inherit from it to get `needs_fit`, `uses_ratio` and `fit`."""

    @property
    def uses_ratio(self) -> bool:
        """Whether the loss corrects for samples of an older policy; otherwise one step per batch is all it may take."""
        return True

    @property
    def needs_fit(self) -> bool:
        """Whether something is decided over a whole mini-batch before each optimizer step."""
        return False

    def fit(self, inputs: SurrogateInputs) -> "Surrogate":
        """The surrogate of one optimizer step, decided on its whole mini-batch; only called where `needs_fit`.

        Args:
            inputs: All trajectories of the mini-batch, without gradient. What is kept per token is found again by
                the `rows` of a micro-batch, whose columns are the first of those here.
        """
        return self

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses and metrics [B, L]; what they hold outside the mask does not matter."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip(Surrogate):
    """PPO's clip, with DAPO's separate bounds and the optional dual clip (`clipped`).

    Raises:
        ConfigError: A negative bound, or a dual clip not above 1.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    """verl sets 3.0 for every algorithm; no paper of the GRPO family has it."""

    def __post_init__(self) -> None:
        if not (self.low >= 0 and self.high >= 0):
            raise ConfigError(
                f"Clip bounds are distances from 1 and not negative, got low={self.low}, high={self.high}."
            )
        if self.dual is not None and not self.dual > 1:
            raise ConfigError(f"The dual clip must exceed 1 (verl: 3.0; None switches it off), got {self.dual}.")

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses and clip shares."""
        return clipped(inputs.log_ratio, inputs.advantages, inputs.mask, low=self.low, high=self.high, dual=self.dual)
