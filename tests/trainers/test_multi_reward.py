"""Rewards in parts: both ways to combine them by hand, and every misuse."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from path_cases import make_batch

from agentrl.errors import ConfigError
from agentrl.trainers import GroupNormalized, OverlongPenalty, PathBatch, Recipe, TrainSettings
from agentrl.trainers.assembly import resolve_recipe
from agentrl.trainers.multi_reward import NormalizeThenSum, PartWeights, with_combined_rewards
from agentrl.trainers.objective import compute_advantages
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.reward_models.step_values import MonteCarloValues
from agentrl.trainers.settings import EnvSettings, RewardSettings

ROOT = 1 / math.sqrt(2)


def in_parts(parts: dict[str, list[float]], group: list[int] | None = None) -> PathBatch:
    values = torch.tensor(list(parts.values()), dtype=torch.float64).T
    batch = make_batch([2] * len(values), values.sum(dim=1).tolist(), group=group)
    return replace(batch, reward_parts=values, part_names=tuple(parts))


def first_tokens(recipe: Recipe, batch: PathBatch) -> list[float]:
    advantages = compute_advantages(recipe, batch)
    assert torch.equal(advantages[:, 0], advantages[:, 1])
    return [float(value) for value in advantages[:, 0]]


class TestNormalizeThenSum:
    def test_by_hand(self) -> None:
        # Two groups of two: each part's z-scores are +-1/sqrt(2) = +-ROOT, or 0 where it is the same for both.
        batch = in_parts({"answer": [1, 0, 1, 1], "cost": [-2, -3, -9, 0]}, group=[0, 0, 1, 1])
        recipe = replace(grpo(), advantage=NormalizeThenSum(weights={"cost": 0.5}, eps=0.0))
        # Group 0: ROOT + .5 ROOT = 1.5 ROOT; group 1: 0 - .5 ROOT. Mean 0, variance 2 * (1.125 + .125) / 3 = 5/6.
        scale = math.sqrt(5 / 6)
        expected = [1.5 * ROOT / scale, -1.5 * ROOT / scale, -0.5 * ROOT / scale, 0.5 * ROOT / scale]
        assert first_tokens(recipe, batch) == pytest.approx(expected)

    def test_it_tells_apart_what_has_one_sum(self) -> None:
        """The first two have the sum 2, but "a" is rarer: a: mean .25, std .5; b: mean 1, std sqrt(2/3)."""
        batch = in_parts({"a": [0.0, 1.0, 0.0, 0.0], "b": [2.0, 1.0, 1.0, 0.0]})
        together = first_tokens(grpo(), batch)
        assert together[0] == together[1]
        apart = first_tokens(replace(grpo(), advantage=NormalizeThenSum(eps=0.0)), batch)
        # Sums -.5 + 1.224745 = .724745, 1.5 + 0, -.5, -.5 - 1.224745 = -1.724745; they have mean 0 and
        # variance (.525255 + 2.25 + .25 + 2.974745) / 3 = 2.
        assert apart == pytest.approx([0.724745 * ROOT, 1.5 * ROOT, -0.5 * ROOT, -1.724745 * ROOT], abs=1e-6)

    def test_the_range_of_a_part_does_not_matter(self) -> None:
        recipe = replace(grpo(), advantage=NormalizeThenSum(eps=0.0))
        small = in_parts({"a": [0.0, 1.0, 0.0], "b": [0.3, 0.1, 0.2]})
        large = in_parts({"a": [0.0, 1.0, 0.0], "b": [300.0, 100.0, 200.0]})
        assert first_tokens(recipe, small) == pytest.approx(first_tokens(recipe, large))

    def test_equal_parts_give_exactly_nothing(self) -> None:
        batch = in_parts({"a": [0.1, 0.1], "b": [0.7, 0.7]})
        assert first_tokens(replace(grpo(), advantage=NormalizeThenSum()), batch) == [0.0, 0.0]

    def test_what_the_recipe_adds_is_a_part(self) -> None:
        batch = in_parts({"a": [0.1, 0.1]})
        batch = replace(batch, mask=torch.tensor([[True, False], [True, True]]))
        recipe = replace(grpo(), advantage=NormalizeThenSum(eps=0.0), shaping=(OverlongPenalty(max_length=2, cache=1),))
        advantages = compute_advantages(recipe, batch)
        assert advantages.flatten().tolist() == pytest.approx([ROOT, 0.0, -ROOT, -ROOT])  # penalties 0 and -1


class TestPartWeights:
    def test_the_reward_is_the_weighted_sum(self) -> None:
        batch = in_parts({"a": [1.0, 0.0], "b": [0.25, 0.5], "c": [3.0, 3.0]})
        terms = PartWeights(weights={"a": 2.0, "b": -1.0})(batch)
        assert (batch.rewards + terms).tolist() == [2.0 - 0.25 + 3.0, -0.5 + 3.0]

    def test_weights_of_one_change_nothing(self) -> None:
        batch = in_parts({"a": [1.0, 0.0, 0.5], "b": [0.25, 0.5, 0.0]})
        recipe = replace(grpo(), shaping=(PartWeights(weights={"a": 1.0}),))
        assert first_tokens(recipe, batch) == first_tokens(grpo(), batch)


@pytest.mark.parametrize("part", ["advantage", "shaping"])
def test_unknown_and_missing_parts(part: str) -> None:
    weights = {"anwser": 2.0}
    changes: dict[str, Any] = {"advantage": NormalizeThenSum(weights=weights)}
    if part == "shaping":
        changes = {"shaping": (PartWeights(weights=weights),)}
    recipe = replace(grpo(), **changes)
    with pytest.raises(ConfigError, match=r"no reward part 'anwser' .* the parts are answer, format"):
        compute_advantages(recipe, in_parts({"answer": [1.0, 0.0], "format": [0.0, 0.0]}))
    with pytest.raises(
        ConfigError, match=r"those of this batch have none\. Let the environment's reward function return"
    ):
        compute_advantages(recipe, make_batch([2, 2], [1.0, 0.0]))


class TestSettings:
    def resolved(self, recipe: str, **rewards: Any) -> Any:
        settings = TrainSettings(
            env=EnvSettings(id="agentrl/Arithmetic-v0"), recipe=recipe, rewards=RewardSettings(**rewards)
        )
        return resolve_recipe(settings)

    def test_the_default_leaves_every_recipe_alone(self) -> None:
        for entry in RECIPES.values():
            assert with_combined_rewards(entry, RewardSettings()) is entry

    def test_normalize_then_sum_takes_the_place_of_grpos_advantage(self) -> None:
        weights = {"answer": 2.0}
        assert self.resolved("arpo", combine="normalize_then_sum", weights=weights) == replace(
            RECIPES["arpo"],  # type: ignore[arg-type]
            advantage=NormalizeThenSum(weights=weights, eps=1e-6, ddof=1),
        )
        changed = replace(grpo(), advantage=GroupNormalized(eps=1e-4, ddof=0))
        combined = with_combined_rewards(changed, RewardSettings(combine="normalize_then_sum"))
        assert combined == replace(grpo(), advantage=NormalizeThenSum(eps=1e-4, ddof=0))

    @pytest.mark.parametrize("recipe", ["dr_grpo", "arpo_hard", "gigpo"])
    def test_of_no_other(self, recipe: str) -> None:
        with pytest.raises(ConfigError, match=f"takes the place of GRPO's advantage, and recipe '{recipe}' has"):
            self.resolved(recipe, combine="normalize_then_sum")

    def test_weights_alone_go_before_any_recipes_own_shaping(self) -> None:
        recipe = self.resolved("dapo", weights={"answer": 2.0})
        assert recipe.shaping == (PartWeights(weights={"answer": 2.0}), OverlongPenalty(max_length=20480, cache=4096))
        assert self.resolved("dr_grpo", weights={"answer": 2.0}).advantage == RECIPES["dr_grpo"].advantage  # type: ignore[union-attr]

    @pytest.mark.parametrize("rewards", [{"combine": "normalize_then_sum"}, {"weights": {"answer": 2.0}}])
    def test_a_recipe_that_does_not_learn_from_the_parts(self, rewards: dict[str, Any]) -> None:
        recipe = replace(grpo(), reward=MonteCarloValues())
        with pytest.raises(ConfigError, match="recipe 'grpo' does not learn from that"):
            with_combined_rewards(recipe, RewardSettings(**rewards))
