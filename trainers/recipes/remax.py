"""ReMax (arXiv:2310.10505)."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.baselines import GreedyBaseline
from agentrl.trainers.kl import KLEstimator, KLPenalty, KLPlace
from agentrl.trainers.ratios import TokenRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.soft_surrogates import PolicyGradient


@recipe
def remax() -> Recipe:
    """R - R_greedy: what the policy would have got by always taking its favourite token, tools included.

    One sample and one greedy episode per task, so an update costs twice the episodes it trains on. The penalty charges
    each token its own k1, not that of the tokens after it, as in the authors' code; the paper sets its coefficient
    per model, 0.01 is OpenRLHF's for this family. verl combines the same advantage with a clipped ratio.
    """
    return Recipe(
        name="remax",
        paper="2310.10505",
        idea="compare with the greedy episode of the same task",
        sampling=GroupPlan(size=1),
        advantage=GreedyBaseline(),
        ratio=TokenRatio(),
        surrogate=PolicyGradient(),
        aggregation=TokenMean(),
        kl=KLPenalty(coef=0.01, estimator=KLEstimator.K1, place=KLPlace.REWARD),
    )
