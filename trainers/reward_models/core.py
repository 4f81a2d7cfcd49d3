"""Learned rewards: they take the place of the environment's before any advantage is formed."""

from collections.abc import Sequence
from typing import Any, Protocol

from agentrl.policies.loading import LoadedModel
from agentrl.rollout.continuation import Prefix
from agentrl.trajectory import Leaf, Tree


class RewardModel(Protocol):
    """What judges episodes beside the environment; success rates stay the environment's.

    Inherit from it to get the methods of one that does not learn.
    """

    def score(self, trees: Sequence[Tree], *, seed: int) -> list[Tree]:
        """The same trees with other rewards.

        Args:
            trees: Of one update; they are not changed.
            seed: Of this update.

        Returns:
            Copies, in order. Their valid leaves have another `reward` and `turn_rewards`, and no `reward_parts`.
        """
        ...

    def fit(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Learns from the episodes of an update, after the policy has.

        Args:
            trees: As the environment judged them.
            number: Of this update, from 0; for alternation and warm-up.
            seed: Of this update.

        Returns:
            Metrics.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        return None


class Completer(Protocol):
    """Plays episodes of the policy that is trained from the middle to the end (`Continuer.continue_from`)."""

    def __call__(self, prefixes: Sequence[Prefix], num_completions: int, *, seed: int) -> list[list[Leaf]]:
        """The valid leaves of each prefix."""
        ...


class RewardSource(Protocol):
    """A part of a recipe: the settings of a reward model. Inherit from it to get the properties below."""

    @property
    def needs_branches(self) -> bool:
        """Whether it says nothing of trajectories that share no more than the prompt."""
        return False

    @property
    def needs_completions(self) -> bool:
        """Whether it has episodes played on from the middle, in forks of their environments."""
        return False

    @property
    def min_group_size(self) -> int:
        """Trajectories of a task it needs at least; smaller sampling plans are refused."""
        return 1

    def build(self, policy: LoadedModel, complete: Completer, *, seed: int) -> RewardModel:
        """A new reward model for a run.

        Args:
            policy: The model that is trained; its tokenizer and device, or a start for weights.
            complete: For those that look what becomes of an episode.
            seed: Of the run.
        """
        ...
