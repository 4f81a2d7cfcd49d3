"""OPO: On-Policy RL with Optimal reward baseline (arXiv:2505.23585)."""

from dataclasses import replace

from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.baselines import LengthWeighted
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo


@recipe
def opo() -> Recipe:
    """The baseline that minimizes variance, approximated by the group's mean weighted by length; no std, no KL.

    Made for strictly on-policy updates, one optimizer step per batch; then the ratio is 1 and its clip, which the
    libraries keep, never acts.
    """
    return replace(
        grpo(),
        name="opo",
        paper="2505.23585",
        idea="a length-weighted group mean as the baseline of least variance",
        advantage=LengthWeighted(),
        aggregation=TokenMean(),
        kl=None,
    )
