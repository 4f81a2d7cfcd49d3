"""RLOO: REINFORCE Leave-One-Out (Back to Basics, arXiv:2402.14740)."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import SeqMeanTokenSum
from agentrl.trainers.baselines import LeaveOneOut
from agentrl.trainers.kl import KLEstimator, KLPenalty, KLPlace
from agentrl.trainers.ratios import TokenRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.soft_surrogates import PolicyGradient


@recipe
def rloo() -> Recipe:
    """Each trajectory is one action; its baseline is the mean return of the others of its group.

    The advantage is G / (G - 1) times Dr. GRPO's, and unbiased. The summed k1 is part of the return before the others
    are averaged. Groups of 4 are the paper's larger setting (2 the other); the coefficient is TRL's, since the paper
    sets it per task. TRL clips the ratio of whole trajectories instead of using none: recipe `rloo_trl`.
    """
    return Recipe(
        name="rloo",
        paper="2402.14740",
        idea="compare with the mean of the others, the trajectory itself left out",
        sampling=GroupPlan(size=4),
        advantage=LeaveOneOut(),
        ratio=TokenRatio(),
        surrogate=PolicyGradient(),
        aggregation=SeqMeanTokenSum(),
        kl=KLPenalty(coef=0.05, estimator=KLEstimator.K1, place=KLPlace.REWARD),
    )
