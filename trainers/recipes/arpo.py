"""ARPO: Agentic Reinforced Policy Optimization (arXiv:2507.19849)."""

from dataclasses import replace

from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.advantages import GroupNormalized, SharedMean
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo


@recipe
def arpo() -> Recipe:
    """Half of the group starts at the prompt, the rest branches off where the model is unsure after a tool result.

    GRPO's loss on the paths of that tree, with the paper's soft advantage: copies of a shared token keep the
    advantage of their own trajectory, and gradients add up to the average. The paper prints GRPO's objective, a mean
    over trajectories of means over tokens; no KL, as its released runs set the coefficient to 0.

    The released code differs: `aggregation=TokenMean()`, `surrogate=Clip(dual=3.0)`, and a coin instead of the
    threshold, with the entropy of the turn before, `sampling=replace(arpo().sampling, rule=BranchRule.REFERENCE)`.
    """
    return replace(
        grpo(),
        name="arpo",
        paper="2507.19849",
        idea="branch after tool results that leave the model uncertain, and compare the branches",
        sampling=GroupPlan(
            size=16, initial=8, rule=BranchRule.PAPER, alpha=0.5, beta=0.2, tau=0.5, probe_tokens=20, max_branches=1
        ),
        kl=None,
    )


@recipe
def arpo_hard() -> Recipe:
    """ARPO with the paper's hard advantage: a token shared by d trajectories gets the mean of their advantages.

    Under `TokenMean` and without clipping this has the gradient of the soft estimate; here it has not, because each
    copy is divided by the length of its own trajectory. The paper found it less steady; the released code lacks it.
    """
    return replace(
        arpo(),
        name="arpo_hard",
        idea="ARPO with explicitly averaged advantages on shared tokens",
        advantage=SharedMean(GroupNormalized(eps=1e-6, ddof=1)),
    )
