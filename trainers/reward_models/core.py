"""Learned rewards: they take the place of the environment's before any advantage is formed."""

from collections.abc import Sequence
from typing import Any, Protocol

from agentrl.policies.loading import LoadedModel
from agentrl.trajectory import Tree


class RewardModel(Protocol):
    """What judges episodes beside the environment; success rates stay the environment's."""

    def score(self, trees: Sequence[Tree]) -> list[Tree]:
        """The same trees with other rewards: `reward` and `turn_rewards` of their valid leaves replaced.

        Args:
            trees: Of one update; they are not changed.
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
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep: tensors, numbers, strings and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        ...


class RewardSource(Protocol):
    """A part of a recipe: the settings of a reward model."""

    def build(self, policy: LoadedModel, *, seed: int) -> RewardModel:
        """A new reward model for a run.

        Args:
            policy: The model that is trained; its tokenizer and device, or a start for weights.
            seed: Of the run.
        """
        ...
