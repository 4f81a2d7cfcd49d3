"""How a critic is fitted to what it should have expected, and how well it did."""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.masking import require_paths, zero_outside
from agentrl.trainers.surrogates import TokenLoss


def clipped_value_loss(
    values: Tensor, old_values: Tensor, targets: Tensor, mask: Tensor, *, clip: float | None
) -> TokenLoss:
    """1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2): a value gains nothing by leaving V_old further than c.

    The squared error is equation 9 of PPO, arXiv:1707.06347; the clip is not in the paper but in its authors' code, and
    in verl and OpenRLHF.

    Args:
        values: [B, L] of the critic being trained, with gradient; anything outside the mask.
        old_values: [B, L] before the update; anything outside the mask.
        targets: [B, L] that it should have expected; anything outside the mask.
        mask: [B, L] bool.
        clip: c; None for the plain squared error.

    Returns:
        Losses [B, L], 0 in value and gradient outside the mask, and as metric `value_clip_fraction`, 1 where the
        clipped error is the larger one.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, values=values, old_values=old_values, targets=targets)
    values, old_values = zero_outside(values, mask), zero_outside(old_values, mask).detach()
    targets = zero_outside(targets, mask).detach()
    error = (values - targets).square()
    if clip is None:
        return TokenLoss(error / 2, {"value_clip_fraction": torch.zeros_like(error)})
    near = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    near_error = (near - targets).square()
    cut = (near_error > error).to(error.dtype)
    return TokenLoss(torch.maximum(error, near_error) / 2, {"value_clip_fraction": cut.detach()})


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over all tokens: 1 for a critic that knows, 0 for a constant, negative if it misleads.

    Held at -1 from below: where targets hardly differ, as when all succeed, the quotient would be any large number.

    Args:
        values: [B, L]; anything outside the mask.
        targets: [B, L]; anything outside the mask.
        mask: [B, L] bool.

    Returns:
        A scalar; 0 where the targets do not differ, so that there is nothing to explain.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> targets, mask = torch.tensor([[0.0, 2.0]]), torch.tensor([[True, True]])
    >>> [float(explained_variance(v, targets, mask)) for v in (targets, torch.ones(1, 2), -targets)]
    [1.0, 0.0, -1.0]
    """
    require_paths(mask, values=values, targets=targets)
    given, wanted = values[mask], targets[mask]
    if wanted.numel() < 2 or bool((wanted == wanted[0]).all()):
        return targets.new_zeros(())
    return (1.0 - (wanted - given).var() / wanted.var()).clamp(min=-1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """A part of a recipe: the loss of a critic (`clipped_value_loss`).

    Raises:
        ConfigError: A clip that is not positive.
    """

    clip: float | None = 0.5
    """Made for rewards of about 1; verl and OpenRLHF set 0.5 too."""

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"The value clip must be positive, got {self.clip}; None switches it off.")

    def __call__(self, values: Tensor, old_values: Tensor, targets: Tensor, mask: Tensor) -> TokenLoss:
        """Losses [B, L] and metrics."""
        return clipped_value_loss(values, old_values, targets, mask, clip=self.clip)
