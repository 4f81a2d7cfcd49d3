"""DAPO: Decoupled Clip and Dynamic sAmpling Policy Optimization (arXiv:2503.14476)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.shaping import DropConstantRewards, OverlongPenalty
from agentrl.trainers.surrogates import Clip


@recipe
def dapo() -> Recipe:
    """GRPO's advantage with four changes and no KL.

    - Clip higher: 1.28 above, 0.8 below, so that improbable tokens have room to grow.
    - Dynamic sampling: groups of equal rewards are dropped and others sampled until the batch is full. The paper
      knows no bound; verl raises an error at its own, here the update uses what there is.
    - Mean over all tokens, so that long trajectories keep their weight.
    - Soft overlong penalty over the last 4096 of 20480 tokens: set both to the scale of your episodes. It counts
      sampled tokens; verl counts tool results too and lets the penalty fall below -1. The filter that the paper
      tried before it is `mask_truncated=True`.
    """
    return replace(
        grpo(),
        name="dapo",
        paper="2503.14476",
        idea="clip higher, drop groups without contrast, average over tokens, punish overlong answers softly",
        sampling=GroupPlan(size=16),
        surrogate=Clip(low=0.2, high=0.28),
        aggregation=TokenMean(),
        kl=None,
        shaping=(OverlongPenalty(max_length=20480, cache=4096),),
        group_filter=DropConstantRewards(max_rounds=10),
    )
