"""GTPO and GRPO-S: entropy-weighted credit for tokens and for trajectories (arXiv:2508.04349)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import SeqMeanTokenMean, TokenMean
from agentrl.trainers.entropy_advantages import EntropyShapedSequences, EntropyShapedTokens
from agentrl.trainers.ratios import MeanRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.surrogates import Clip


@recipe
def gtpo() -> Recipe:
    """Uncertain tokens of successes earn more, confident tokens of failures lose more; DAPO's clip and token mean.

    Success is the environment's verdict. The paper's version 6 normalizes successes and failures apart
    (`separate=True`): each class then averages 0, and whether an episode succeeded drops out of the gradient. Here one
    mean and deviation are taken over all tokens of the group. No code was released. Two other GTPOs exist.
    """
    return replace(
        grpo(),
        name="gtpo",
        paper="2508.04349",
        idea="share out the reward at each step by entropy, within successes and within failures",
        sampling=GroupPlan(size=16),
        advantage=EntropyShapedTokens(base=1.0, bonus=0.1),
        surrogate=Clip(low=0.2, high=0.28),
        aggregation=TokenMean(),
        kl=None,
    )


@recipe
def grpo_s() -> Recipe:
    """The same for whole trajectories: rewards shaped by mean entropy, and the mean of the token ratios as ratio.

    As in gtpo, one normalization for the group instead of one for each class.
    """
    return replace(
        gtpo(),
        name="grpo_s",
        idea="shape each trajectory's reward by its mean entropy",
        advantage=EntropyShapedSequences(base=1.0, bonus=0.1),
        ratio=MeanRatio(),
        aggregation=SeqMeanTokenMean(),
    )
