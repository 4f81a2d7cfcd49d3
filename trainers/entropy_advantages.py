"""Advantages that look at the entropy of the policy where it sampled: GTPO, GRPO-S, AEPO.

Entropies are those of the sampling distribution, without gradient. Axes as in `agentrl.trainers.batch`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.advantages import group_sizes
from agentrl.trainers.feedback import AdvantageWrapper, Feedback, GroupRelative
from agentrl.trainers.masking import require_paths, zero_outside

_EPS = 1e-8
"""Keeps 1 / H finite where the policy was certain, and 0 / 0 away where nothing varies."""


def entropy_shaped_tokens(
    entropies: Tensor, success: Tensor, group: Tensor, mask: Tensor, *, base: float, bonus: float
) -> Tensor:
    """GTPO's token rewards, arXiv:2508.04349.

    Over the trajectories of the group that succeeded and have a t-th sampled token (there are d_t of them):
    r_(i,t) = base + bonus * d_t * H_(i,t) / sum_k H_(k,t). Over the h_t failed ones, with 1/H in place of H and a
    minus sign before both terms: what failed with confidence is punished most.

    The rewards of the d_t tokens at t sum to (base + bonus) d_t, whatever the entropies are.

    Args:
        entropies: [B, L], at least 0; anything outside the mask.
        success: [B] bool.
        group: [B] int64.
        mask: [B, L] bool.
        base: alpha_1.
        bonus: alpha_2.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, entropies=entropies)
    entropies = zero_outside(entropies, mask).clamp(min=_EPS)
    weight = zero_outside(torch.where(success[:, None], entropies, 1.0 / entropies), mask)
    members, sizes = group_sizes(group)
    width = mask.shape[1]
    time = mask.cumsum(dim=1) - 1  # t counts sampled tokens, wherever their columns are
    cell = ((2 * members + success.long())[:, None] * width + time)[mask]
    sums = weight.new_zeros(2 * len(sizes) * width).index_add(0, cell, weight[mask])
    alive = torch.bincount(cell, minlength=len(sums)).to(weight.dtype)
    shaped = torch.zeros_like(weight)
    shaped[mask] = base + bonus * alive[cell] * weight[mask] / sums[cell]
    return torch.where(success[:, None], shaped, -shaped)


def entropy_shaped_sequences(
    entropies: Tensor, success: Tensor, group: Tensor, mask: Tensor, *, base: float, bonus: float
) -> Tensor:
    """GRPO-S's trajectory rewards, arXiv:2508.04349: GTPO's with the mean entropy of each trajectory.

    Over the n trajectories of the group that succeeded: r_i = base + bonus * n * H_i / sum_k H_k; over the failed
    ones with 1/H and a minus sign. A trajectory without a token has no entropy; it stands outside and gets 0.

    Args:
        entropies: [B, L], at least 0; anything outside the mask.
        success: [B] bool.
        group: [B] int64.
        mask: [B, L] bool.
        base: beta_1.
        bonus: beta_2.

    Returns:
        [B].

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, entropies=entropies)
    mean = zero_outside(entropies, mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    filled = mask.any(dim=1, keepdim=True)
    return entropy_shaped_tokens(mean[:, None], success, group, filled, base=base, bonus=bonus)[:, 0]


def standardized(values: Tensor, part: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-8) within the elements of each part; exactly 0 where all are equal or there is one.

    Args:
        values: Any shape.
        part: int64, same shape: elements of one number belong together.
        mask: bool, same shape.

    Returns:
        Same shape, 0 outside the mask. The standard deviation divides by n - 1.
    """
    _, members = torch.unique(part[mask], return_inverse=True)
    x = values[mask]
    zeros = x.new_zeros(int(members.max()) + 1 if len(members) else 0)
    counts = torch.bincount(members, minlength=len(zeros)).to(x.dtype)
    centered = x - (zeros.index_add(0, members, x) / counts)[members]
    std = (zeros.index_add(0, members, centered.square()) / (counts - 1).clamp(min=1)).sqrt()[members]
    highest = zeros.scatter_reduce(0, members, x, reduce="amax", include_self=False)
    lowest = zeros.scatter_reduce(0, members, x, reduce="amin", include_self=False)
    result = torch.zeros_like(values)
    result[mask] = zero_outside(centered / (std + _EPS), (highest > lowest)[members])
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyShapedTokens(GroupRelative):
    """GTPO's advantage: z-scores of its token rewards (`entropy_shaped_tokens`).

    Success is the environment's verdict, not the reward: the method is defined for right and wrong.

    Raises:
        ConfigError: A negative weight.
    """

    base: float = 1.0
    bonus: float = 0.1
    separate: bool = False
    """Normalise successes and failures apart, as version 6 of the paper prints it. Both then have mean 0, and nothing
    tells success from failure any more; False takes one mean and deviation over all tokens of the group."""

    def __post_init__(self) -> None:
        _check_weights(self.base, self.bonus)

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L]."""
        batch = feedback.batch
        rewards = entropy_shaped_tokens(
            batch.entropies, batch.success, batch.group, batch.mask, base=self.base, bonus=self.bonus
        )
        part = 2 * batch.group + (batch.success.long() if self.separate else 0)
        return standardized(rewards, part[:, None].expand(batch.mask.shape), batch.mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyShapedSequences(GroupRelative):
    """GRPO-S's advantage: z-scores of its trajectory rewards (`entropy_shaped_sequences`).

    Raises:
        ConfigError: A negative weight.
    """

    base: float = 1.0
    bonus: float = 0.1
    separate: bool = False
    """As in `EntropyShapedTokens`."""

    def __post_init__(self) -> None:
        _check_weights(self.base, self.bonus)

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L]."""
        batch = feedback.batch
        rewards = entropy_shaped_sequences(
            batch.entropies, batch.success, batch.group, batch.mask, base=self.base, bonus=self.bonus
        )
        part = 2 * batch.group + (batch.success.long() if self.separate else 0)
        scores = standardized(rewards, part, batch.mask.any(dim=1))
        return scores[:, None].expand(batch.mask.shape)


def _check_weights(base: float, bonus: float) -> None:
    if not (base >= 0 and bonus >= 0):
        raise ConfigError(f"Weights of entropy-shaped rewards are not negative, got base={base}, bonus={bonus}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyAware(AdvantageWrapper):
    """AEPO's advantage: A (1 + weight * z(H)), z over all tokens of the batch. arXiv:2510.14545, section 4.3.

    The factor is held at 0 from below, so that it cannot turn an advantage around (paper and code let it, from
    z < -1 / weight on).
    """

    weight: float = 0.2

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the inner estimator's."""
        batch = feedback.batch
        z = standardized(batch.entropies, torch.zeros_like(batch.turn), batch.mask)
        return self.inner(feedback) * (1.0 + self.weight * z).clamp(min=0.0)
