"""Several rewards per trajectory: added up and then compared, or compared one by one and then added up.

Axes as in `agentrl.trainers.batch`: B trajectories, L sampled tokens; K named parts of the reward.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.advantages import GroupNormalized, group_normalized
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.batch import PathBatch
from agentrl.trainers.feedback import Feedback, GroupRelative
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import RewardSettings
from agentrl.trainers.shaping import RewardShaping


def part_weights(batch: PathBatch, weights: Mapping[str, float]) -> Tensor:
    """[K]: the weight of every part, 1 for those that are not named.

    Args:
        batch: With the parts.
        weights: By name.

    Raises:
        ConfigError: The rewards have no parts, or there is no part of a given name.
    """
    if not batch.part_names:
        raise ConfigError(
            "Rewards are to be combined from parts, and those of this batch have none. Let the environment's reward "
            'function return a mapping such as {"answer": 1.0, "format": -0.5}, or leave `rewards` out of the config.'
        )
    unknown = sorted(set(weights) - set(batch.part_names))
    if unknown:
        raise ConfigError(
            f"There is no reward part {unknown[0]!r} to give a weight to; the parts are {', '.join(batch.part_names)}."
        )
    return batch.reward_parts.new_tensor([weights.get(name, 1.0) for name in batch.part_names])


@dataclass(frozen=True, slots=True, kw_only=True)
class PartWeights(RewardShaping):
    """Makes the reward a weighted sum of its parts, whatever is done with it then: sum_then_normalize with weights.

    Raises:
        ConfigError: When called; see `part_weights`.
    """

    weights: Mapping[str, float]
    """By name; other parts keep the weight 1."""

    def __call__(self, batch: PathBatch) -> Tensor:
        """[B]: sum over parts of (weight - 1) * part, as the parts are in the reward with weight 1 already."""
        return batch.reward_parts @ (part_weights(batch, self.weights) - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizeThenSum(GroupRelative):
    """GDPO, arXiv:2601.05242, equations 4 to 7: normalize_then_sum.

    A_n = (r_n - mean) / (std + eps) for every part n over its group; S = sum of weight_n * A_n; and
    A = (S - mean) / (std + eps) over all trajectories of the batch. Two trajectories that differ in their parts differ
    in A even if their rewards have the same sum, and a part of small range weighs as much as one of large range. A
    part that is the same for the whole group adds nothing.

    What the recipe adds to the reward of its own (length penalty, KL) is one more part, with weight 1. verl takes the
    last mean and standard deviation over tokens, so that long trajectories weigh more; the paper over trajectories.

    Raises:
        ConfigError: When called; see `part_weights`.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    """By name; other parts have the weight 1."""
    eps: float = 1e-6
    ddof: int = 1

    def __call__(self, feedback: Feedback) -> Tensor:
        """[B, L] from the parts of the rewards."""
        batch = feedback.batch
        weights = part_weights(batch, self.weights)
        summed = self._compare(feedback.returns - batch.rewards, batch.group)
        for part, weight in zip(batch.reward_parts.unbind(dim=1), weights, strict=True):
            summed = summed + weight * self._compare(part, batch.group)
        whitened = self._compare(summed, torch.zeros_like(batch.group))
        return whitened[:, None].expand(batch.mask.shape)

    def _compare(self, values: Tensor, group: Tensor) -> Tensor:
        return group_normalized(values, group, eps=self.eps, ddof=self.ddof)


def with_combined_rewards(recipe: Algorithm, rewards: RewardSettings) -> Algorithm:
    """The recipe with a run's way to combine the parts of a reward.

    Args:
        recipe: Of the run.
        rewards: Section `rewards` of its settings.

    Raises:
        ConfigError: The recipe has no place for it.
    """
    if rewards == RewardSettings():
        return recipe
    if not isinstance(recipe, Recipe) or recipe.reward is not None:
        raise ConfigError(
            f"`rewards` combines the parts of the environment's reward, and recipe {recipe.name!r} does not learn from "
            "that. Leave it out, or use a recipe such as grpo."
        )
    if rewards.combine == "sum_then_normalize":
        return replace(recipe, shaping=(PartWeights(weights=rewards.weights), *recipe.shaping))
    if not isinstance(recipe.advantage, GroupNormalized):
        raise ConfigError(
            f"rewards.combine=normalize_then_sum takes the place of GRPO's advantage, and recipe {recipe.name!r} has "
            f"{type(recipe.advantage).__name__}. Leave it out, or use a recipe with GRPO's, such as grpo, dapo or arpo."
        )
    compared = recipe.advantage
    advantage = NormalizeThenSum(weights=rewards.weights, eps=compared.eps, ddof=compared.ddof)
    return replace(recipe, advantage=advantage)
