"""Advantages by baselines other than the group's mean: the batch, the others, a greedy episode, a length-weighted mean.

Axes as in `agentrl.trainers.batch`: B trajectories, L sampled tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import DataError
from agentrl.trainers.advantages import group_centered, group_sizes
from agentrl.trainers.feedback import Advantage, Feedback, GroupRelative, reward_to_go
from agentrl.trainers.masking import require_paths, require_rows, zero_outside


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """A_i = R_i - mean of the others' R = G / (G - 1) (R_i - mean): RLOO, arXiv:2402.14740, equation 8.

    A group of one has no others and gets 0 (verl leaves it the raw reward).

    Args:
        rewards: [B].
        group: [B] int64.

    Returns:
        [B].

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> leave_one_out(torch.tensor([1.0, 0.5, 7.0]), torch.tensor([0, 0, 1])).tolist()
    [0.5, -0.5, 0.0]
    """
    members, sizes = group_sizes(group)
    size = sizes[members].to(rewards.dtype)
    return group_centered(rewards, group) * size / (size - 1).clamp(min=1)


def length_weighted(rewards: Tensor, group: Tensor, lengths: Tensor) -> Tensor:
    """A_i = R_i - sum_j L_j R_j / sum_j L_j over the group: OPO, arXiv:2505.23585, equation 8.

    The optimal baseline weighs by squared gradient norms; those grow with length, which stands in for them.

    Args:
        rewards: [B].
        group: [B] int64.
        lengths: [B] int64: sampled tokens.

    Returns:
        [B]; exactly 0 where the rewards of a group are equal, or none of it has a token.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    centered = group_centered(rewards, group)  # the baseline of what is centered is 0 to the bit without contrast
    members, sizes = group_sizes(group)
    weights = lengths.to(rewards.dtype)
    zeros = rewards.new_zeros(len(sizes))
    totals = zeros.index_add(0, members, weights)
    baseline = zeros.index_add(0, members, weights * centered) / totals.clamp(min=1)
    return zero_outside(centered - baseline[members], (totals > 0)[members])


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) over all tokens of the batch: every token counts, long trajectories more.

    The variance divides by n - 1, as in verl (OpenRLHF: by n). Equal values give exactly 0.

    Args:
        values: [B, L]; anything outside the mask.
        mask: [B, L] bool, of the whole batch.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask, values=values)
    x = values[mask]
    if len(x) == 0 or bool((x == x[0]).all()):
        return torch.zeros_like(values)
    scale = torch.rsqrt(x.var(correction=1) + 1e-8)
    return zero_outside((zero_outside(values, mask) - x.mean()) * scale, mask)


@dataclass(frozen=True, slots=True)
class BatchCentered(Advantage):
    """REINFORCE with the mean return of the whole batch as its baseline (Williams 1992); no group is needed."""

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the returns."""
        one_group = torch.zeros_like(feedback.batch.group)
        return group_centered(feedback.returns, one_group)[:, None].expand(feedback.batch.mask.shape)


@dataclass(frozen=True, slots=True)
class LeaveOneOut(GroupRelative):
    """RLOO's mean of the others (`leave_one_out`)."""

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the returns."""
        return leave_one_out(feedback.returns, feedback.batch.group)[:, None].expand(feedback.batch.mask.shape)


@dataclass(frozen=True, slots=True)
class LengthWeighted(GroupRelative):
    """OPO's length-weighted mean (`length_weighted`)."""

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the returns."""
        batch = feedback.batch
        return length_weighted(feedback.returns, batch.group, batch.lengths)[:, None].expand(batch.mask.shape)


@dataclass(frozen=True, slots=True)
class GreedyBaseline(Advantage):
    """ReMax: A_t = R - R_greedy, plus what a KL penalty in the reward charges this token (arXiv:2310.10505).

    The greedy episode plays the same task with the tools, at temperature 0: one more episode per task. The KL of later
    tokens is not charged to earlier ones, as in the authors' code.

    Raises:
        DataError: A trajectory without a greedy episode beside it.
    """

    @property
    def needs_greedy(self) -> bool:
        """It is the baseline."""
        return True

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from rewards, greedy rewards and token rewards."""
        baseline = feedback.batch.greedy_rewards
        if bool(torch.isnan(baseline).any()):
            raise DataError(
                "ReMax compares with a greedy episode of the same task, and a trajectory has none. Sample with a "
                "trainer, which plays it, or put its return into tree.metadata['greedy_reward']."
            )
        require_rows(baseline, feedback.batch.group)
        return (feedback.rewards - baseline)[:, None] + feedback.token_rewards


@dataclass(frozen=True, slots=True, kw_only=True)
class WhitenedReturns(Advantage):
    """REINFORCE++: the rewards still to come, whitened over all tokens of the batch. arXiv:2501.03262, section 3.

    It subtracts a token-weighted mean, so the advantages of a group need not sum to 0. Any group size will do.
    """

    gamma: float = 1.0

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from rewards at their tokens, the KL penalty included."""
        mask = feedback.batch.mask
        return whitened(reward_to_go(feedback.stream, mask, gamma=self.gamma), mask)


@dataclass(frozen=True, slots=True)
class WhitenedGroupCentered(GroupRelative):
    """REINFORCE++-baseline: the group's mean is subtracted, then all tokens of the batch are whitened together."""

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the returns."""
        mask = feedback.batch.mask
        return whitened(group_centered(feedback.returns, feedback.batch.group)[:, None].expand(mask.shape), mask)
