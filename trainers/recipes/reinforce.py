"""REINFORCE: the score-function estimator (Williams 1992) on whole episodes."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import SeqMeanTokenSum
from agentrl.trainers.baselines import BatchCentered
from agentrl.trainers.ratios import TokenRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.soft_surrogates import PolicyGradient


@recipe
def reinforce() -> Recipe:
    """(R - mean of the batch) * grad log pi, summed over each trajectory: the textbook's estimator.

    The baseline is the batch's mean, whatever the task, so tasks of unequal difficulty add variance that a group
    would take away (see rloo). It knows no ratio: one optimizer step per batch. The identifier is that of the study
    that brought it back for language models (Back to Basics). Libraries mean REINFORCE++ when they say REINFORCE.
    """
    return Recipe(
        name="reinforce",
        paper="2402.14740",
        idea="push up what did better than the average of the batch",
        sampling=GroupPlan(size=4),
        advantage=BatchCentered(),
        ratio=TokenRatio(),
        surrogate=PolicyGradient(),
        aggregation=SeqMeanTokenSum(),
    )
