"""Factors on the loss of single tokens, orthogonal to the algorithm: they multiply what the aggregation says."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.batch import PathBatch
from agentrl.trainers.levels import CorrectionAction, CorrectionLevel
from agentrl.trainers.masking import require_paths, zero_outside
from agentrl.trainers.ratios import bounded_exp, product_level, sequence_level


class TokenWeight(Protocol):
    """A part of a recipe: a factor for every token's loss. Inherit from it to get `needs_old_logprobs`."""

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the trainer has to compute log-probabilities of its own before the update (an extra forward pass).

        Otherwise those that the sampler reported serve as the old policy's.
        """
        return False

    def __call__(self, batch: PathBatch, old_logprobs: Tensor) -> Tensor:
        """Factors [B, L] without gradient; what they hold outside the mask does not matter.

        Args:
            batch: The whole mini-batch.
            old_logprobs: [B, L] under the trainer's policy before the update.
        """
        ...


@dataclass(frozen=True, slots=True)
class TopEntropy(TokenWeight):
    """Gradient only on the tokens of highest entropy: "80/20", arXiv:2506.01939, equation 5.

    Tokens at or above the quantile 1 - `share` of the mini-batch's sampled tokens count; denominators keep all.

    Raises:
        ConfigError: A share outside (0, 1].
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"The share of high-entropy tokens must be in (0, 1], got {self.share}.")

    def __call__(self, batch: PathBatch, old_logprobs: Tensor) -> Tensor:
        """1 or 0."""
        # Not torch.quantile, which refuses more than 16 million numbers.
        ordered = batch.entropies[batch.mask].sort().values
        if len(ordered) == 0:  # a mini-batch of prompts that left no room for an answer
            return torch.zeros_like(batch.entropies)
        place = (1.0 - self.share) * (len(ordered) - 1)
        below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
        threshold = below + (place - math.floor(place)) * (above - below)
        return (batch.entropies >= threshold).to(batch.entropies.dtype)


def correction_weights(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    level: CorrectionLevel,
    action: CorrectionAction,
    low: float,
    high: float,
) -> Tensor:
    """W = pi_old / pi_sampler, bounded: what makes the samples of an engine those of the trainer's own network.

    Args:
        old_logprobs: [B, L] as the trainer computes them for the weights that sampled; anything outside the mask.
        sampler_logprobs: [B, L] as the engine reported them; anything outside the mask.
        mask: [B, L] bool.
        level: Of the ratio.
        action: Outside the bounds.
        low: Smallest weight.
        high: Largest weight.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs)
    log_weight = zero_outside(old_logprobs, mask) - zero_outside(sampler_logprobs, mask)
    if level is CorrectionLevel.SEQUENCE:
        log_weight = product_level(log_weight, mask)
    elif level is CorrectionLevel.GEOMETRIC:
        log_weight = sequence_level(log_weight, mask)
    weight = bounded_exp(log_weight)
    if action is CorrectionAction.TRUNCATE:
        return zero_outside(weight.clamp(low, high), mask)
    return zero_outside(weight, mask & (weight >= low) & (weight <= high))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerCorrection(TokenWeight):
    """Importance weights between sampler and trainer (`correction_weights`); not needed where both are one network.

    Bounds: 0 to 2 truncated is verl's default for it; IcePop masks outside 0.5 to 5; TRL masks trajectories above 3.

    Raises:
        ConfigError: Bounds that do not hold 1 between them.
    """

    level: CorrectionLevel = CorrectionLevel.TOKEN
    action: CorrectionAction = CorrectionAction.TRUNCATE
    low: float = 0.0
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 <= self.high:
            raise ConfigError(f"Correction bounds need 0 <= low <= 1 <= high, got low={self.low}, high={self.high}.")

    @property
    def needs_old_logprobs(self) -> bool:
        """The trainer's side of the ratio."""
        return True

    def __call__(self, batch: PathBatch, old_logprobs: Tensor) -> Tensor:
        """The weights."""
        return correction_weights(
            old_logprobs,
            batch.logprobs,
            batch.mask,
            level=self.level,
            action=self.action,
            low=self.low,
            high=self.high,
        )
