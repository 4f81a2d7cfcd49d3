"""Tree-GRPO: tree search for agent reinforcement learning (arXiv:2509.21240)."""

from dataclasses import replace

from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.kl import KLEstimator, KLPenalty
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.step_advantages import TreeNormalized


@recipe
def tree_grpo() -> Recipe:
    """Two trees per task, each expanded at two random nodes; leaves are compared within their tree and over all.

    A node is a whole turn with its tool results. Trees and draws are the paper's smallest setting: M=2 trees, N=2
    nodes, L=1 round, so 2 * (1 + 2) = 6 leaves. For the estimate that the released code computes, see
    `TreeNormalized(inter=False)`.
    """
    return replace(
        grpo(),
        name="tree_grpo",
        paper="2509.21240",
        idea="grow few trees at random nodes, and compare leaves within a tree and between trees",
        sampling=GroupPlan(size=6, initial=2, rule=BranchRule.RANDOM_NODES, rounds=1),
        advantage=TreeNormalized(inter=True),
        aggregation=TokenMean(),
        kl=KLPenalty(coef=0.001, estimator=KLEstimator.K3),
    )
