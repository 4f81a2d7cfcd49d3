"""What a run can add to any recipe that it fits: corrections, masks and clips that belong to no algorithm."""

import math
from dataclasses import replace

from agentrl.errors import ConfigError
from agentrl.trainers.algorithm import Algorithm
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.recipe_card import brief
from agentrl.trainers.settings import ExtraSettings
from agentrl.trainers.soft_surrogates import GradientPreservingClip
from agentrl.trainers.surrogates import Clip
from agentrl.trainers.token_weights import SamplerCorrection, TokenWeight, TopEntropy


def with_extras(recipe: Algorithm, extras: ExtraSettings) -> Algorithm:
    """The recipe with what a run adds to it.

    Args:
        recipe: Of the run.
        extras: Section `extras` of its settings.

    Raises:
        ConfigError: The recipe has no place for one of them.
    """
    given = [name for name, value in extras if value is not None]
    if not given:
        return recipe
    if not isinstance(recipe, Recipe):
        wrong = [name for name in given if name != "replay" or not recipe.allows_replay]
        if wrong:
            raise ConfigError(
                f"extras.{wrong[0]} acts on the policy's own episodes, their importance ratios and token losses, and "
                f"recipe {recipe.name!r} learns without. Leave it out, or use an on-policy recipe."
            )
        return recipe
    if extras.replay is not None and not recipe.allows_replay:
        raise ConfigError(
            f"extras.replay trains on episodes of an earlier policy, but recipe {recipe.name!r} does not correct for "
            "that by a ratio: it would be biased. Leave it out, or use a recipe that does, such as grpo or bapo."
        )
    if extras.two_sided_clip is not None:
        recipe = _two_sided(recipe, extras.two_sided_clip)
    weights: list[TokenWeight] = []
    if extras.correction is not None and extras.correction.level != "off":
        weights.append(SamplerCorrection(**extras.correction.model_dump()))
    if extras.top_entropy is not None:
        weights.append(TopEntropy(extras.top_entropy))
    return replace(recipe, token_weights=(*recipe.token_weights, *weights))


def _two_sided(recipe: Recipe, bound: float) -> Recipe:
    """INTELLECT-2's bound on the ratio of negative advantages (arXiv:2505.07291), which is the dual clip."""
    surrogate = recipe.surrogate
    if not isinstance(surrogate, Clip | GradientPreservingClip) or math.isinf(surrogate.high):
        raise ConfigError(
            f"extras.two_sided_clip adds to a clip of the ratio, but recipe {recipe.name!r} has "
            f"{brief(surrogate)}. Leave it out, or use a recipe with a clip, such as grpo."
        )
    if bound <= 1.0 + surrogate.high:
        raise ConfigError(
            f"extras.two_sided_clip must lie above the clip of recipe {recipe.name!r}, 1 + {surrogate.high}, "
            f"got {bound}."
        )
    return replace(recipe, surrogate=replace(surrogate, dual=bound))
