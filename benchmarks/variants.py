"""Recipes that a claim of the documentation rests on; they are for comparison, not for use."""

from dataclasses import replace

from agentrl.trainers.entropy_advantages import EntropyShapedSequences, EntropyShapedTokens
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.gtpo import grpo_s, gtpo


@recipe
def gtpo_separate() -> Recipe:
    """GTPO as version 6 of arXiv:2508.04349 prints it: successes and failures are normalized apart."""
    return replace(
        gtpo(),
        name="gtpo_separate",
        idea="GTPO that normalizes successes and failures apart",
        advantage=EntropyShapedTokens(base=1.0, bonus=0.1, separate=True),
    )


@recipe
def grpo_s_separate() -> Recipe:
    """GRPO-S likewise."""
    return replace(
        grpo_s(),
        name="grpo_s_separate",
        idea="GRPO-S that normalizes successes and failures apart",
        advantage=EntropyShapedSequences(base=1.0, bonus=0.1, separate=True),
    )
