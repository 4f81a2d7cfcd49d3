"""GSPO: Group Sequence Policy Optimization (arXiv:2507.18071)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.ratios import SequenceRatio, SequenceTokenRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.surrogates import Clip


@recipe
def gspo() -> Recipe:
    """GRPO with one ratio per trajectory, the geometric mean of its token ratios, and a clip to match.

    The exponent 1 / length is the point: the ratio of joint probabilities would leave any clip. The bounds are the
    paper's, three orders of magnitude below GRPO's, and so is the share of clipped tokens above it: both normal. The
    mean runs over sampled tokens, not over tool results. verl 0.9 averages over tokens unless told otherwise.
    """
    return replace(
        grpo(),
        name="gspo",
        paper="2507.18071",
        idea="one length-normalized ratio per trajectory, clipped as a whole",
        sampling=GroupPlan(size=16),
        ratio=SequenceRatio(),
        surrogate=Clip(low=3e-4, high=4e-4),
        kl=None,
    )


@recipe
def gspo_token() -> Recipe:
    """GSPO's value with a gradient for every token of its own, for advantages that differ within a trajectory.

    With one advantage per trajectory it is GSPO, value and gradient.
    """
    return replace(
        gspo(),
        name="gspo_token",
        idea="GSPO that takes advantages per token",
        ratio=SequenceTokenRatio(),
    )
