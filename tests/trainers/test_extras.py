"""What a run adds to a recipe, and which recipes refuse it."""

from dataclasses import replace

import pytest

from agentrl.errors import ConfigError
from agentrl.trainers import RECIPES, Clip
from agentrl.trainers.assembly import resolve_recipe
from agentrl.trainers.extras import with_extras
from agentrl.trainers.levels import CorrectionAction, CorrectionLevel
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import ExtraSettings, TrainSettings
from agentrl.trainers.soft_surrogates import GradientPreservingClip
from agentrl.trainers.token_weights import SamplerCorrection, TopEntropy


def extras(**values: object) -> ExtraSettings:
    return ExtraSettings.model_validate(values)


@pytest.mark.parametrize("name", list(RECIPES))
def test_nothing_is_on_by_default(name: str) -> None:
    assert with_extras(RECIPES[name], ExtraSettings()) is RECIPES[name]
    assert getattr(RECIPES[name], "token_weights", ()) == ()


def test_each_extra_lands_in_its_part() -> None:
    changed = with_extras(
        RECIPES["grpo"],
        extras(correction={"level": "geometric", "action": "mask", "low": 0.5}, top_entropy=0.3, two_sided_clip=4),
    )
    correction = SamplerCorrection(level=CorrectionLevel.GEOMETRIC, action=CorrectionAction.MASK, low=0.5, high=2.0)
    grpo = RECIPES["grpo"]
    assert isinstance(grpo, Recipe)
    assert changed == replace(
        grpo, surrogate=Clip(low=0.2, high=0.2, dual=4.0), token_weights=(correction, TopEntropy(0.3))
    )
    assert isinstance(changed, Recipe)
    assert changed.needs_old_logprobs
    assert not grpo.needs_old_logprobs


def test_extras_come_from_the_settings_of_a_run() -> None:
    settings = TrainSettings.model_validate(
        {"env": {"id": "agentrl/Arithmetic-v0"}, "recipe": "aepo", "extras": {"two_sided_clip": 3.0}}
    )
    resolved = resolve_recipe(settings)
    assert isinstance(resolved, Recipe)
    assert resolved.surrogate == GradientPreservingClip(low=0.2, high=0.2, dual=3.0)


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        ("reinforce", {"replay": {}}, r"extras\.replay .* 'reinforce' does not correct"),
        ("remax", {"replay": {}}, "does not correct for that by a ratio"),
        ("sapo", {"two_sided_clip": 3.0}, "'sapo' has SoftGate"),
        ("dapo", {"two_sided_clip": 1.2}, r"above the clip of recipe 'dapo', 1 \+ 0.28, got 1.2"),
        ("grpo", {"top_entropy": 1.5}, "in \\(0, 1\\], got 1.5"),
        ("grpo", {"correction": {"low": 1.5}}, "0 <= low <= 1 <= high, got low=1.5"),
        ("dpo", {"top_entropy": 0.2}, r"extras\.top_entropy acts on .* importance ratios .* 'dpo' learns without"),
        ("dpo", {"replay": {}, "two_sided_clip": 3.0}, r"extras\.two_sided_clip .* 'dpo' learns without"),
        ("sft", {"replay": {}}, r"extras\.replay .* 'sft' learns without"),
        ("star", {"replay": {}}, r"extras\.replay .* 'star' learns without"),
    ],
)
def test_what_does_not_fit_is_refused(recipe: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_extras(RECIPES[recipe], extras(**given))


@pytest.mark.parametrize("recipe", ["grpo", "bapo", "gspo", "arpo", "dpo", "kto", "dpo_siblings"])
def test_recipes_with_a_ratio_or_preferences_allow_replay(recipe: str) -> None:
    assert with_extras(RECIPES[recipe], extras(replay={"groups": 2})) == RECIPES[recipe]
