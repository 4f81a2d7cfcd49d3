"""BAPO's clip, whose bounds are chosen anew for every optimizer step. arXiv:2510.18927."""

import enum
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agentrl.errors import ConfigError, DataError
from agentrl.trainers.ratios import bounded_exp
from agentrl.trainers.surrogates import Surrogate, SurrogateInputs, TokenLoss, clipped

_ON_POLICY = 1e-6
"""Log-ratios below this are rounding. At a batch's first step no bound acts; the search would just run to its end."""


class Contribution(enum.StrEnum):
    """What a token adds to the balance of positive and negative."""

    GRADIENT = "gradient"
    """r |A|, or 0 where the clip takes its gradient (the indicator of equation 5)."""
    VALUE = "value"
    """|min(r A, clip(r) A)|, equation 8 to the letter. A clipped negative token then counts *more* than an unclipped
    one, so that raising the lower bound shrinks the positive share it is meant to raise."""


def positive_share(
    advantages: Tensor, ratio: Tensor, weight: Tensor, *, low: float, high: float, contribution: Contribution
) -> Tensor:
    """What tokens with A > 0 contribute within the bounds [low, high], as a share: equation 8 of arXiv:2510.18927.

    Args:
        advantages: [N], of the tokens of a mini-batch.
        ratio: [N].
        weight: [N]: the paper's pi_rollout(y_t).
        low: Smallest ratio that is not clipped.
        high: Largest.
        contribution: What counts.

    Returns:
        Scalar in [0, 1]; 1 if nothing contributes, so that there is nothing to balance.

    >>> advantages, ratio = torch.tensor([1.0, -1.0]), torch.tensor([1.5, 1.0])
    >>> float(positive_share(advantages, ratio, torch.ones(2), low=0.8, high=2.0, contribution=Contribution.GRADIENT))
    0.6000000238418579
    """
    if contribution is Contribution.VALUE:
        amount = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages).abs()
    else:
        active = torch.where(advantages > 0, ratio <= high, ratio >= low)
        amount = torch.where(active, ratio * advantages.abs(), 0.0)
    amount = amount * weight
    total = amount.sum()
    return torch.where(total > 0, amount[advantages > 0].sum() / total, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClip(Surrogate):
    """Widens the clip until tokens with A > 0 contribute a given share; algorithm 1 of arXiv:2510.18927.

    From the narrowest bounds, first the upper one rises in steps, then the lower one, until the positive share is
    reached or both are at their ends: at most 36 + 15 steps with the defaults. The share weighs tokens by the
    probability that the sampler gave them. All of it looks at the whole mini-batch.

    "Off-policy" means stale samples of the policy itself, with the log-probabilities they were sampled with. Human
    demonstrations or logs have none: without them the ratio does not exist.

    Raises:
        ConfigError: Bounds out of order, steps that are not positive, or a share outside (0, 1).
    """

    share: float = 0.4
    """rho_0"""
    low: tuple[float, float] = (0.6, 0.9)
    """Range of the lower bound, as a ratio."""
    high: tuple[float, float] = (1.2, 3.0)
    """Range of the upper bound, as a ratio."""
    low_step: float = 0.02
    high_step: float = 0.05
    contribution: Contribution = Contribution.GRADIENT
    chosen: tuple[float, float] | None = None
    """Bounds of this optimizer step, set by `fit`; None: the narrowest."""

    def __post_init__(self) -> None:
        if not (0 < self.low[0] <= self.low[1] <= 1 <= self.high[0] <= self.high[1]):
            raise ConfigError(f"Ratio bounds need 0 < low <= 1 <= high, got low={self.low}, high={self.high}.")
        if not (self.low_step > 0 and self.high_step > 0 and 0 < self.share < 1):
            raise ConfigError(
                f"Steps must be positive and the share between 0 and 1, got low_step={self.low_step}, "
                f"high_step={self.high_step}, share={self.share}."
            )

    @property
    def needs_fit(self) -> bool:
        """The bounds of every optimizer step."""
        return True

    @property
    def schedule(self) -> list[tuple[float, float]]:
        """All bounds in the order in which they are tried; whole steps, so that no rounding adds up."""
        lows, highs = (
            [start + i * step for i in range(math.floor((end - start) / step + 1e-9) + 1)]
            for (start, end), step in ((self.low, self.low_step), (self.high, self.high_step))
        )
        return [(lows[0], high) for high in highs] + [(low, highs[-1]) for low in lows[1:]]

    def fit(self, inputs: SurrogateInputs) -> "AdaptiveClip":
        """This surrogate with the bounds of one optimizer step.

        Raises:
            DataError: The samples carry no behaviour log-probabilities.
        """
        if bool(inputs.mask.any()) and not bool(inputs.old_logprobs[inputs.mask].any()):
            raise DataError(
                "BAPO weighs tokens by the policy that sampled them, and these have no such log-probabilities: all are "
                "0, as in demonstrations and logs. Train on the policy's own episodes, or use sft or kto for these."
            )
        if not bool((inputs.log_ratio.abs() > _ON_POLICY).any()):
            return replace(self, chosen=self.schedule[0])
        columns = (inputs.advantages, inputs.log_ratio, inputs.old_logprobs)
        advantages, log_ratio, old = (column[inputs.mask].double() for column in columns)
        ratio, weight = bounded_exp(log_ratio), old.exp()
        shares = torch.stack(
            [
                positive_share(advantages, ratio, weight, low=low, high=high, contribution=self.contribution)
                for low, high in self.schedule
            ]
        )
        enough = (shares >= self.share).nonzero().flatten().tolist()
        return replace(self, chosen=self.schedule[enough[0] if enough else -1])

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        """Losses, clip shares, and the bounds."""
        low, high = self.chosen or self.schedule[0]
        values, metrics = clipped(inputs.log_ratio, inputs.advantages, inputs.mask, low=1.0 - low, high=high - 1.0)
        bounds = {"clip_bound_low": low, "clip_bound_high": high}
        return TokenLoss(values, {**metrics, **{name: torch.full_like(values, at) for name, at in bounds.items()}})
