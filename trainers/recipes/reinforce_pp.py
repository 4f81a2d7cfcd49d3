"""REINFORCE++ (arXiv:2501.03262), plain and with a group baseline."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.baselines import WhitenedGroupCentered, WhitenedReturns
from agentrl.trainers.kl import KLEstimator, KLPenalty, KLPlace
from agentrl.trainers.ratios import TokenRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.surrogates import Clip


@recipe
def reinforce_pp() -> Recipe:
    """Returns-to-go with a k1 penalty on every token, whitened over all tokens of the batch, under PPO's clip.

    No critic and no group: one sample per task will do. What it takes over from PPO is the clip of the ratio (not of
    the gradient) and the penalty in the reward. The coefficient is OpenRLHF's, the authors' library; verl whitens
    alike, with n - 1 in the variance, where OpenRLHF has n.
    """
    return Recipe(
        name="reinforce_pp",
        paper="2501.03262",
        idea="normalize over the whole batch instead of the group",
        sampling=GroupPlan(size=1),
        advantage=WhitenedReturns(gamma=1.0),
        ratio=TokenRatio(),
        surrogate=Clip(low=0.2, high=0.2),
        aggregation=TokenMean(),
        kl=KLPenalty(coef=0.01, estimator=KLEstimator.K1, place=KLPlace.REWARD),
    )


@recipe
def reinforce_pp_baseline() -> Recipe:
    """Subtracts the group's mean, then whitens over all tokens of the batch: Dr. GRPO's advantage at one global scale.

    A group without contrast leaves the whitening with -mean / std, which need not be 0. The KL penalty moves into the
    loss, as k2, whose gradient is that of KL(pi || reference).
    """
    return replace(
        reinforce_pp(),
        name="reinforce_pp_baseline",
        idea="group mean as baseline, one scale for the whole batch",
        sampling=GroupPlan(size=8),
        advantage=WhitenedGroupCentered(),
        kl=KLPenalty(coef=0.01, estimator=KLEstimator.K2),
    )
