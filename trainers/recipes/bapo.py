"""BAPO: Balanced Policy Optimization with Adaptive Clipping (arXiv:2510.18927)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.adaptive_clip import AdaptiveClip
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo


@recipe
def bapo() -> Recipe:
    """GRPO whose clip widens before every step until positive tokens contribute 40 % of the update.

    Bounds and steps are the paper's. What a token contributes is its gradient here, 0 where it is clipped; the paper's
    equation 8 counts values, `AdaptiveClip(contribution=Contribution.VALUE)`, by which raising the lower bound
    shrinks the share it should raise. The released code compares a ratio of sums instead of a share, moves the lower
    bound first, and adds a dual clip of 3. At the first step of a batch all ratios are 1 and the clip stays narrow:
    it is made for several mini-batches or for replayed episodes of an earlier policy. Not for demonstrations or logs.
    """
    return replace(
        grpo(),
        name="bapo",
        paper="2510.18927",
        idea="widen the clip until good tokens weigh enough against bad ones",
        sampling=GroupPlan(size=8),
        surrogate=AdaptiveClip(share=0.4, low=(0.6, 0.9), high=(1.2, 3.0), low_step=0.02, high_step=0.05),
        aggregation=TokenMean(),
        kl=None,
    )
