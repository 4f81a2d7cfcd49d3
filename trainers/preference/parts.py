"""The parts of a preference recipe that know numbers: a loss with its strength, and what it says about examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.preference.losses import dpo_loss, ipo_loss, kto_loss, log_odds, orpo_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class PathScores:
    """Trajectories as a preference loss sees them; every tensor is [N].

    Example:
        PathScores(logprobs=tensor([-12.0]), log_ratios=tensor([-0.5]), lengths=tensor([40]))
    """

    logprobs: Tensor
    """Sum of the log-probabilities of the action tokens, with gradient."""
    log_ratios: Tensor
    """Delta, with gradient: how much likelier it is than under the reference; NaN where there is no reference."""
    lengths: Tensor
    """int64: action tokens, at least 1."""

    @property
    def mean_logprobs(self) -> Tensor:
        """Per action token."""
        return self.logprobs / self.lengths

    def rows(self, index: Sequence[int]) -> "PathScores":
        """Some of them, in that order."""
        chosen = torch.tensor(index, dtype=torch.int64, device=self.lengths.device)
        return PathScores(
            logprobs=self.logprobs[chosen], log_ratios=self.log_ratios[chosen], lengths=self.lengths[chosen]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What a micro-batch has to teach: P pairs, or P desirable and Q undesirable trajectories."""

    chosen: PathScores
    """[P]"""
    rejected: PathScores
    """[P] in pairs, each to the chosen one of the same place; [Q] as labels."""
    reference_point: Tensor | None = None
    """KTO's z0, a scalar; None for other losses."""


class PreferenceLoss(Protocol):
    """A part of a recipe: a loss per example, and a margin that says how far it is on the right side."""

    paired: ClassVar[bool]
    """Whether an example is a pair; otherwise a trajectory with a label."""
    needs_reference: ClassVar[bool]
    """Whether it compares with a frozen reference model."""
    needs_reference_point: ClassVar[bool]
    """Whether it needs trajectories after the prompts of other tasks, for KTO's z0."""

    def __call__(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Losses with gradient, and margins.

        Returns:
            [P] twice for pairs; [P + Q] twice for labels, the desirable ones first. A margin is positive where the
            policy tells good from bad.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO(PreferenceLoss):
    """Direct Preference Optimization (`dpo_loss`).

    Raises:
        ConfigError: A beta that is not positive.
    """

    paired: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    needs_reference_point: ClassVar[bool] = False
    beta: float = 0.1
    """Strength of the pull to the reference: the smaller, the farther the policy may go."""

    def __post_init__(self) -> None:
        _require_positive(beta=self.beta)

    def __call__(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """[P] losses and implicit reward margins."""
        margin = self.beta * (examples.chosen.log_ratios - examples.rejected.log_ratios)
        return dpo_loss(margin), margin


@dataclass(frozen=True, slots=True, kw_only=True)
class IPO(PreferenceLoss):
    """Identity Preference Optimization (`ipo_loss`).

    Raises:
        ConfigError: A tau that is not positive.
    """

    paired: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    needs_reference_point: ClassVar[bool] = False
    tau: float = 0.1
    """Strength of the pull to the reference; the gap aimed at is 1 / (2 tau)."""
    token_mean: bool = False
    """Log-ratios per token, as TRL has them, instead of the paper's sums over a trajectory."""

    def __post_init__(self) -> None:
        _require_positive(tau=self.tau)

    def __call__(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """[P] losses and implicit reward margins."""
        chosen, rejected = examples.chosen.log_ratios, examples.rejected.log_ratios
        if self.token_mean:
            chosen, rejected = chosen / examples.chosen.lengths, rejected / examples.rejected.lengths
        gap = chosen - rejected
        return ipo_loss(gap, tau=self.tau), self.tau * gap


@dataclass(frozen=True, slots=True, kw_only=True)
class KTO(PreferenceLoss):
    """Kahneman-Tversky Optimization (`kto_loss`, `reference_point`).

    Raises:
        ConfigError: A number that is not positive.
    """

    paired: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    needs_reference_point: ClassVar[bool] = True
    beta: float = 0.1
    """Steepness of the value around the reference point."""
    weight_desirable: float = 1.0
    """The paper's lambda_D. Choose both so that lambda_D n_D / (lambda_U n_U) lies in [1, 4/3]."""
    weight_undesirable: float = 1.0
    """The paper's lambda_U."""

    def __post_init__(self) -> None:
        _require_positive(
            beta=self.beta, weight_desirable=self.weight_desirable, weight_undesirable=self.weight_undesirable
        )

    def __call__(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """[P + Q] losses and margins, those of the desirable trajectories first.

        Raises:
            ValueError: No reference point.
        """
        if examples.reference_point is None:
            raise ValueError("KTO measures against a reference point: pass reference_point.")
        z0 = examples.reference_point.detach()
        good = self.beta * (examples.chosen.log_ratios - z0)
        bad = self.beta * (z0 - examples.rejected.log_ratios)
        weights = [good.detach().new_full(good.shape, self.weight_desirable)]
        weights.append(bad.detach().new_full(bad.shape, self.weight_undesirable))
        margin = torch.cat([good, bad])
        return kto_loss(margin, torch.cat(weights)), margin


@dataclass(frozen=True, slots=True, kw_only=True)
class ORPO(PreferenceLoss):
    """Odds Ratio Preference Optimization (`orpo_loss`).

    Raises:
        ConfigError: A weight that is not positive.
    """

    paired: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = False
    needs_reference_point: ClassVar[bool] = False
    weight: float = 0.1
    """Of the odds beside the imitation of the chosen trajectory; the paper's lambda."""

    def __post_init__(self) -> None:
        _require_positive(weight=self.weight)

    def __call__(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """[P] losses and differences of log-odds."""
        chosen, rejected = examples.chosen.mean_logprobs, examples.rejected.mean_logprobs
        margin = log_odds(chosen) - log_odds(rejected)
        return orpo_loss(chosen, margin, weight=self.weight), margin


def _require_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0.0 < value < float("inf"):
            raise ConfigError(f"{name} must be positive and finite, got {value!r}.")
