"""Advantages that know turns, states and trees: GiGPO, MT-GRPO, Tree-GRPO and GRPO with process supervision.

Axes as in `agentrl.trainers.batch`: B trajectories, L sampled tokens; K turns of the longest trajectory. A turn that
several trajectories share counts once for each of them, as its tokens do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.advantages import group_centered, group_normalized
from agentrl.trainers.feedback import Feedback, GroupRelative, reward_to_go
from agentrl.trainers.turns import at_tokens, turn_mask, turn_states, turn_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class StateGroups(GroupRelative):
    """GiGPO, arXiv:2505.10978, equations 3 to 8: A = A_episode + weight * A_step.

    A_episode compares the return of a trajectory with its group. A_step compares the discounted return from a turn,
    R_k = sum over j >= k of gamma^(j - k) * r_j, with those of all turns of the group that were taken in the same
    state, be they of other trajectories or of the same one; a state met once, or not named, gives 0.

    Each trajectory counts once in the first statistic and each turn once in the second. verl-agent, where every turn
    is a training row of its own, takes the first over rows, so that long episodes weigh more in their group's mean.

    Raises:
        ConfigError: When called: no turn of the batch has a state.
    """

    weight: float = 1.0
    gamma: float = 0.95
    """Discount per turn."""
    scale: bool = False
    """Whether both parts are divided by their standard deviations (verl-agent: mean_std_norm instead of mean_norm)."""
    eps: float = 1e-6

    @property
    def needs_states(self) -> bool:
        """Yes."""
        return True

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from returns, rewards of turns and states."""
        batch = feedback.batch
        states, exists = turn_states(batch), turn_mask(batch)
        if not (states >= 0).any():
            raise ConfigError(
                "GiGPO compares turns that were taken in the same state, and the environment named no state in this "
                "batch. Override ToolEnv.state_key (agentrl.envs.observation_key will often do), or use grpo."
            )
        returns = reward_to_go(turn_sums(feedback.stream, batch), exists, gamma=self.gamma)
        alone = -1 - torch.arange(states.numel(), device=states.device).view(states.shape)
        keys = states.where(exists & (states >= 0), alone)
        step = self._compare(returns.flatten(), keys.flatten()).view(states.shape)
        episode = self._compare(feedback.returns, batch.group)
        return episode[:, None] + self.weight * at_tokens(step, batch)

    def _compare(self, values: Tensor, group: Tensor) -> Tensor:
        return group_normalized(values, group, eps=self.eps) if self.scale else group_centered(values, group)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTurn(GroupRelative):
    """MT-GRPO, arXiv:2505.11821: tokens before the first tool result get A_outcome + weight * A_turn, others A_outcome.

    A_turn is GRPO's z-score of the reward of the first turn, A_outcome that of all other rewards. A trajectory that
    never saw a tool result has no reward of a turn of its own: what its only turn got is its outcome, and, as in the
    authors' code, the sum of both advantages goes to all of its tokens.

    Where only outcomes are rewarded this is GRPO.
    """

    weight: float = 1.0
    """The paper's lambda."""
    eps: float = 1e-6

    @property
    def needs_turn_rewards(self) -> bool:
        """Its second comparison is of them."""
        return True

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the rewards of turns and the returns."""
        batch = feedback.batch
        rewards, exists = turn_sums(feedback.stream, batch), turn_mask(batch)
        goes_on = exists.sum(dim=1) > 1
        first = rewards[:, :1].sum(dim=1).where(goes_on, 0.0)
        turn = group_normalized(first, batch.group, eps=self.eps)
        outcome = group_normalized(feedback.returns - first, batch.group, eps=self.eps)
        return outcome[:, None] + self.weight * turn[:, None] * (batch.turn == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNormalized(GroupRelative):
    """Tree-GRPO, arXiv:2509.21240, section 3.2: A = A_intra + A_inter.

    A_intra is GRPO's z-score among the leaves of one tree, that is of the trajectories that branched, directly or by
    way of others, from one and the same that started at the prompt; A_inter that among all leaves of the task. A tree
    with a single leaf, or with equal rewards, has A_intra = 0.

    The released code normalizes by task first and the result by tree. The second step undoes the first, as a z-score
    does not see an affine change: what it computes is A_intra alone (up to eps), `inter=False`.
    """

    inter: bool = True
    eps: float = 1e-6

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the returns."""
        batch, returns = feedback.batch, feedback.returns
        trees = torch.unique(torch.stack([batch.group, batch.root], dim=1), dim=0, return_inverse=True)[1]
        scores = group_normalized(returns, trees, eps=self.eps)
        if self.inter:
            scores = scores + group_normalized(returns, batch.group, eps=self.eps)
        return scores[:, None].expand(batch.mask.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessNormalized(GroupRelative):
    """GRPO with process supervision, DeepSeekMath, arXiv:2402.03300, section 4.1.3; a step is a turn.

    r~_k = (r_k - mean) / (std + eps) over the rewards of all turns of all trajectories of a group, and
    A_t = sum of r~_k over the turns k that end at or after token t.

    Rewards whose mean is not 0 make the number of turns matter: each further turn adds (r_k - mean) / std, so a turn
    that is merely good pays. Differences of values (`agentrl.trainers.reward_models.steps`) add up to 0 over a group.
    """

    eps: float = 1e-6

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the rewards of turns."""
        batch = feedback.batch
        rewards, exists = turn_sums(feedback.stream, batch), turn_mask(batch)
        group = batch.group[:, None].expand(exists.shape)
        scores = rewards.new_zeros(rewards.shape)
        scores[exists] = group_normalized(rewards[exists], group[exists], eps=self.eps)
        return at_tokens(reward_to_go(scores, exists), batch)
