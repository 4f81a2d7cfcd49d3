"""Advantages: how much better a trajectory did than its group, and how that is spread over its tokens.

Axes as in `agentrl.trainers.batch`: B trajectories, L sampled tokens, U unique sampled tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.trainers.feedback import AdvantageWrapper, Feedback, GroupRelative
from agentrl.trainers.masking import require_paths, require_rows, zero_outside


def group_mean(rewards: Tensor, group: Tensor) -> Tensor:
    """The mean reward of each trajectory's group, the trajectory included.

    Args:
        rewards: [B].
        group: [B] int64; equal values are one group, in any order.

    Returns:
        [B]: every member of a group gets the same value.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_rows(rewards, group)
    members, sizes = group_sizes(group)
    sums = rewards.new_zeros(len(sizes)).index_add(0, members, rewards)
    return (sums / sizes)[members]


def group_centered(rewards: Tensor, group: Tensor) -> Tensor:
    """A_i = R_i - mean(R of the group): Dr. GRPO, arXiv:2503.20783, section 3.2.

    The mean includes i itself (the leave-one-out mean belongs to RLOO). Where all rewards of a group are equal the
    result is exactly 0, free of the rounding of the mean; so it is for a group of one, which has nothing to compare.

    Args:
        rewards: [B].
        group: [B] int64.

    Returns:
        [B].

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_rows(rewards, group)
    members, sizes = group_sizes(group)
    extremes = rewards.new_zeros(len(sizes))
    highest = extremes.scatter_reduce(0, members, rewards, reduce="amax", include_self=False)
    lowest = extremes.scatter_reduce(0, members, rewards, reduce="amin", include_self=False)
    return zero_outside(rewards - group_mean(rewards, group), (highest > lowest)[members])


def group_normalized(rewards: Tensor, group: Tensor, *, eps: float = 1e-6, ddof: int = 1) -> Tensor:
    """A_i = (R_i - mean) / (std + eps) over the group: GRPO, arXiv:2402.03300, section 4.1.2.

    The paper leaves `eps` and the kind of standard deviation open. verl: eps 1e-6; TRL: 1e-4; both ddof 1.
    A group of one, or of equal rewards, gets exactly 0 (verl gives the raw reward to a group of one, which has then
    no baseline at all; TRL refuses such groups).

    Args:
        rewards: [B].
        group: [B] int64.
        eps: Added to the standard deviation.
        ddof: 1 divides the squared deviations by n - 1, 0 by n.

    Returns:
        [B].

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> group_normalized(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]), eps=0.0).tolist()
    [0.7071067690849304, -0.7071067690849304, 0.0]
    """
    centered = group_centered(rewards, group)
    members, sizes = group_sizes(group)
    squares = rewards.new_zeros(len(sizes)).index_add(0, members, centered.square())
    std = (squares / (sizes - ddof).clamp(min=1)).sqrt()[members]
    # Without contrast there is nothing to scale; dividing by 1 keeps eps=0 from making 0 / 0.
    return centered / torch.where(std > 0, std + eps, 1.0)


def mean_over_shared(advantages: Tensor, token_index: Tensor, mask: Tensor) -> Tensor:
    """Gives a token that d trajectories share the mean of their advantages: ARPO's hard estimator.

    A_u = 1/d * sum over the d trajectories through token u of A_i: "Advantage Attribution Estimation" in
    arXiv:2507.19849.

    Args:
        advantages: [B, L]; a trajectory's own advantage at each of its tokens.
        token_index: [B, L] int64: which unique token each position is.
        mask: [B, L] bool.

    Returns:
        [B, L]: the same number in every copy of a token, 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> soft = torch.tensor([[1.2, 1.2], [-0.8, -0.8]], dtype=torch.float64)
    >>> mean_over_shared(soft, torch.tensor([[0, 1], [0, 2]]), torch.ones(2, 2, dtype=torch.bool)).tolist()
    [[0.19999999999999996, 1.2], [0.19999999999999996, -0.8]]
    """
    require_paths(mask, advantages=advantages)
    if token_index.dtype != torch.int64 or token_index.shape != mask.shape:
        raise ValueError(
            f"token_index must be int64 {list(mask.shape)}, got {token_index.dtype} {list(token_index.shape)}."
        )
    index = token_index.where(mask, 0)
    num_unique = int(index.max()) + 1 if index.numel() else 0
    sums = advantages.new_zeros(num_unique).index_add(0, index[mask], advantages[mask])
    copies = torch.bincount(index[mask], minlength=num_unique).clamp(min=1)
    return zero_outside((sums / copies)[index], mask)


def group_sizes(group: Tensor) -> tuple[Tensor, Tensor]:
    """[B] rank of each trajectory's group, and [number of groups] members."""
    _, members, sizes = torch.unique(group, return_inverse=True, return_counts=True)
    return members, sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNormalized(GroupRelative):
    """GRPO's z-score within the group, the same for all tokens of a trajectory (`group_normalized`)."""

    eps: float = 1e-6
    ddof: int = 1

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the returns."""
        scores = group_normalized(feedback.returns, feedback.batch.group, eps=self.eps, ddof=self.ddof)
        return scores[:, None].expand(feedback.batch.mask.shape)


@dataclass(frozen=True, slots=True)
class GroupCentered(GroupRelative):
    """Dr. GRPO's difference from the group mean, the same for all tokens of a trajectory (`group_centered`)."""

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the returns."""
        return group_centered(feedback.returns, feedback.batch.group)[:, None].expand(feedback.batch.mask.shape)


@dataclass(frozen=True, slots=True)
class SharedMean(AdvantageWrapper):
    """ARPO's hard estimator around any other: copies of a shared token get their mean (`mean_over_shared`).

    Without it the estimate is soft: each copy keeps the advantage of its own trajectory, and the average arises in
    the gradient. The two agree where every token has the same weight and no copy is clipped.
    """

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the inner estimator's."""
        return mean_over_shared(self.inner(feedback), feedback.batch.token_index, feedback.batch.mask)
