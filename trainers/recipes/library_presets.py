"""What libraries compute under a paper's name: for runs that have to be comparable with theirs.

Read in TRL 1.16.0 and verl 0.9.1; the defaults of later versions may differ.
"""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.advantages import GroupNormalized
from agentrl.trainers.aggregation import SeqMeanTokenMean, TokenMean
from agentrl.trainers.ratios import ProductRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.rloo import rloo
from agentrl.trainers.surrogates import Clip


@recipe
def grpo_trl() -> Recipe:
    """TRL's defaults: std + 1e-4, mean over all tokens, no KL."""
    return replace(
        grpo(),
        name="grpo_trl",
        idea="GRPO as TRL 1.16 computes it by default",
        advantage=GroupNormalized(eps=1e-4, ddof=1),
        aggregation=TokenMean(),
        kl=None,
    )


@recipe
def grpo_verl() -> Recipe:
    """Verl's defaults: std + 1e-6, mean over all tokens, a dual clip of 3, no KL."""
    return replace(
        grpo(),
        name="grpo_verl",
        idea="GRPO as verl 0.9 computes it by default",
        surrogate=Clip(low=0.2, high=0.2, dual=3.0),
        aggregation=TokenMean(),
        kl=None,
    )


@recipe
def rloo_trl() -> Recipe:
    """TRL's defaults: pairs, and PPO's clip on the ratio of whole trajectories, which long ones leave at once."""
    return replace(
        rloo(),
        name="rloo_trl",
        idea="RLOO as TRL 1.16 computes it by default",
        sampling=GroupPlan(size=2),
        ratio=ProductRatio(),
        surrogate=Clip(low=0.2, high=0.2),
        aggregation=SeqMeanTokenMean(),
    )
