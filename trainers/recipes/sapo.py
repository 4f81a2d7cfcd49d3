"""SAPO: Soft Adaptive Policy Optimization (arXiv:2511.20347)."""

from dataclasses import replace

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.soft_surrogates import SoftGate


@recipe
def sapo() -> Recipe:
    """GRPO with a sigmoid gate in place of the clip; negative advantages are forgotten a little sooner.

    Nothing adapts: the two temperatures are constants, chosen by the sign of the advantage. The weight on a token
    decays smoothly (0.18 at r = 4) where a clip would cut it. The loss reads 2 A / tau at r = 1, so its value does
    not compare with GRPO's. TRL and verl agree. At least three other methods share the acronym.
    """
    return replace(
        grpo(),
        name="sapo",
        paper="2511.20347",
        idea="a soft gate around ratio 1 instead of a hard clip",
        sampling=GroupPlan(size=8),
        surrogate=SoftGate(tau_pos=1.0, tau_neg=1.05),
        kl=None,
    )
