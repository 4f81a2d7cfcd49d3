"""What is known about sampled trajectories when credit is assigned, and what an estimator of advantages is.

Axes as in `agentrl.trainers.batch`: B trajectories, L sampled tokens.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agentrl.trainers.batch import PathBatch
from agentrl.trainers.masking import require_paths, zero_outside


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Rewards, and for those who need them values, of all trajectories of a batch."""

    batch: PathBatch
    rewards: Tensor
    """[B]: outcome of each trajectory, shaping terms of the recipe added."""
    token_rewards: Tensor
    """[B, L]: rewards of single tokens, 0 where there are none; a KL penalty on the reward lives here."""
    values: Tensor | None = None
    """[B, L]: what a critic expected before each token was sampled; None without a critic."""

    @property
    def returns(self) -> Tensor:
        """[B]: outcome plus the rewards of all tokens."""
        return self.rewards + zero_outside(self.token_rewards, self.batch.mask).sum(dim=1)

    @property
    def stream(self) -> Tensor:
        """[B, L]: every reward at the token where it falls; a row sums to `returns`, unless it has no token.

        Rewards of turns stand at the last token of their turn, shaping terms at the last token of the trajectory.
        """
        mask = self.batch.mask
        positions = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        last = mask & (positions == positions.where(mask, -1).amax(dim=1, keepdim=True))
        shaping = (self.rewards - self.batch.rewards)[:, None].expand(mask.shape)
        return zero_outside(self.batch.turn_rewards + self.token_rewards, mask) + zero_outside(shaping, last)


def reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """G_t = r_t + gamma * G_(t+1) along the sampled tokens of each trajectory; what lies between them takes no time.

    Args:
        rewards: [B, L]; anything outside the mask.
        mask: [B, L] bool.
        gamma: Discount per sampled token.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> reward_to_go(torch.tensor([[1.0, 9.0, 2.0]]), torch.tensor([[True, False, True]]), gamma=0.5).tolist()
    [[2.0, 0.0, 2.0]]
    """
    require_paths(mask, rewards=rewards)
    rewards = zero_outside(rewards, mask)
    later = rewards.new_zeros(len(rewards))
    columns = []
    for t in reversed(range(rewards.shape[1])):
        later = torch.where(mask[:, t], rewards[:, t] + gamma * later, later)
        columns.append(later)
    return zero_outside(torch.stack(columns[::-1], dim=1), mask) if columns else rewards


class Advantage(Protocol):
    """A part of a recipe: credit for every token. Inherit from it to get the properties below."""

    @property
    def needs_critic(self) -> bool:
        """Whether it reads values that a critic has to learn; it then has `value_targets`."""
        return False

    @property
    def needs_greedy(self) -> bool:
        """Whether it compares with a greedy episode of the same task, tools included."""
        return False

    @property
    def needs_states(self) -> bool:
        """Whether it compares turns that were taken in the same state, so that the environment has to name states."""
        return False

    @property
    def needs_turn_rewards(self) -> bool:
        """Whether it is pointless where the environment rewards nothing before the end."""
        return False

    @property
    def min_group_size(self) -> int:
        """Trajectories of a task it needs at least; smaller sampling plans are refused."""
        return 1

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L]: the advantage of every token; what it holds outside the mask does not matter."""
        ...

    def value_targets(self, feedback: Feedback) -> Tensor:
        """[B, L]: what a critic should have expected before each token; the rewards still to come, unless overridden.

        Only read where `needs_critic`.
        """
        return reward_to_go(feedback.stream, feedback.batch.mask)


@dataclass(frozen=True, slots=True)
class GroupRelative(Advantage):
    """Base of the estimators that compare trajectories of one task: one alone tells nothing."""

    @property
    def min_group_size(self) -> int:
        """One trajectory cannot be compared with itself."""
        return 2


@dataclass(frozen=True, slots=True)
class AdvantageWrapper(Advantage):
    """Base of the estimators that change what another one says: they need what it needs."""

    inner: Advantage

    @property
    def needs_critic(self) -> bool:
        """As the inner estimator."""
        return self.inner.needs_critic

    @property
    def needs_greedy(self) -> bool:
        """As the inner estimator."""
        return self.inner.needs_greedy

    @property
    def needs_states(self) -> bool:
        """As the inner estimator."""
        return self.inner.needs_states

    @property
    def needs_turn_rewards(self) -> bool:
        """As the inner estimator."""
        return self.inner.needs_turn_rewards

    @property
    def min_group_size(self) -> int:
        """As the inner estimator."""
        return self.inner.min_group_size

    def value_targets(self, feedback: Feedback) -> Tensor:
        """As the inner estimator."""
        return self.inner.value_targets(feedback)
