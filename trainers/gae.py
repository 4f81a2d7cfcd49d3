"""Generalized advantage estimation: credit from the values of a critic, for agents whose tools speak in between."""

from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.baselines import whitened
from agentrl.trainers.feedback import Advantage, Feedback
from agentrl.trainers.masking import require_paths, zero_outside


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """A_t = delta_t + gamma lam A_(t+1) with delta_t = r_t + gamma V_(t+1) - V_t: GAE, arXiv:1506.02438, equation 16.

    Time runs over the sampled tokens of a trajectory. What stands between two of them, a tool result for example,
    has no column or is masked: the token before it bootstraps from the value before the *next sampled token*, the first
    state in which the agent decides again, and no discount is paid for what the tool said. (A pass over the
    concatenated text would bootstrap from states inside the tool's result, which no loss ever teaches a critic.)

    After its last token a trajectory is worth 0, also where a token or turn limit cut it short: the limit is part of
    the task that the agent has to solve, the environment's reward already judges the episode as it stands, and the
    state behind the last token belongs to no decision, so nothing would teach its value. verl does the same.

    Args:
        rewards: [B, L] of each token; anything outside the mask.
        values: [B, L] expected before each token was sampled; anything outside the mask.
        mask: [B, L] bool.
        gamma: Discount per sampled token.
        lam: 0 trusts the critic after one token, 1 never: then A_t is the discounted return minus V_t.

    Returns:
        [B, L], 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> rewards, values = torch.tensor([[0.0, 9.0, 1.0]]), torch.tensor([[0.25, 9.0, 0.5]])
    >>> generalized_advantages(rewards, values, torch.tensor([[True, False, True]]), gamma=1.0, lam=0.5).tolist()
    [[0.5, 0.0, 0.5]]
    """
    require_paths(mask, rewards=rewards, values=values)
    rewards, values = zero_outside(rewards, mask), zero_outside(values, mask)
    value_after = advantage_after = values.new_zeros(len(values))
    columns = []
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        advantage_after = torch.where(mask[:, t], delta + gamma * lam * advantage_after, advantage_after)
        value_after = torch.where(mask[:, t], values[:, t], value_after)
        columns.append(advantage_after)
    return zero_outside(torch.stack(columns[::-1], dim=1), mask) if columns else values


@dataclass(frozen=True, slots=True, kw_only=True)
class GAE(Advantage):
    """PPO's advantage (`generalized_advantages`), whitened over all tokens of the batch after the returns are formed.

    Raises:
        ConfigError: `gamma` or `lam` outside [0, 1].
    """

    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = True

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"GAE needs {name} between 0 and 1, got {getattr(self, name)}.")

    @property
    def needs_critic(self) -> bool:
        """Whose values it compares with."""
        return True

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from rewards and values."""
        advantages = self._raw(feedback)
        return whitened(advantages, feedback.batch.mask) if self.whiten else advantages

    def value_targets(self, feedback: Feedback) -> Tensor:
        """[B, L]: A + V, the lambda-return, of the advantages before whitening."""
        assert feedback.values is not None, "gather_feedback refuses a recipe without its critic"
        return self._raw(feedback) + feedback.values

    def _raw(self, feedback: Feedback) -> Tensor:
        assert feedback.values is not None, "gather_feedback refuses a recipe without its critic"
        return generalized_advantages(
            feedback.stream, feedback.values, feedback.batch.mask, gamma=self.gamma, lam=self.lam
        )
