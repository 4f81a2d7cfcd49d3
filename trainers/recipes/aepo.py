"""AEPO: Agentic Entropy-Balanced Policy Optimization (arXiv:2510.14545)."""

from dataclasses import replace

from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers.advantages import GroupNormalized
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.entropy_advantages import EntropyAware
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.arpo import arpo
from agentrl.trainers.soft_surrogates import GradientPreservingClip


@recipe
def aepo() -> Recipe:
    """ARPO that balances entropy: in the rollout, in the clip, and in the advantage.

    - Rollout: a first trajectory tells how many start at the prompt; branching one tool result after the other is
      discouraged. The released code switches the first part off and counts branchings per task, not per path.
    - Clip: a clipped token with A > 0 keeps its gradient; the paper found those to be the exploring ones.
    - Advantage: times 1 + 0.2 z(entropy), never below 0 (paper and code let the sign turn). The code adds a dual
      clip of 3 and averages over tokens, which the paper leaves open.
    """
    return replace(
        arpo(),
        name="aepo",
        paper="2510.14545",
        idea="ARPO with entropy-balanced branching, clipping and advantages",
        sampling=GroupPlan(size=16, dynamic=True, rule=BranchRule.AEPO, alpha=0.5, beta=0.2, tau=0.5, probe_tokens=20),
        advantage=EntropyAware(inner=GroupNormalized(eps=1e-6, ddof=1), weight=0.2),
        surrogate=GradientPreservingClip(low=0.2, high=0.2),
        aggregation=TokenMean(),
    )
