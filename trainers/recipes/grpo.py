"""GRPO: Group Relative Policy Optimization (DeepSeekMath, arXiv:2402.03300)."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.advantages import GroupNormalized
from agentrl.trainers.aggregation import SeqMeanTokenMean
from agentrl.trainers.kl import KLEstimator, KLPenalty
from agentrl.trainers.ratios import TokenRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.surrogates import Clip


@recipe
def grpo() -> Recipe:
    """Every trajectory is compared with its group, (R - mean) / (std + 1e-6); no critic.

    The numbers are the paper's (clip 0.2 is PPO's, which it starts from), except the group: it samples 64, R1-Zero
    16, today's libraries 8. What they call GRPO differs from this in:
    - aggregation: TRL and verl default to a mean over all tokens, `TokenMean()`;
    - KL: both default to none, `kl=None`, which also saves the reference model; TRL also multiplies k3 by the ratio;
    - advantage: TRL adds 1e-4 to the standard deviation, `GroupNormalized(eps=1e-4)`;
    - surrogate: verl adds a dual clip, `Clip(dual=3.0)`.
    """
    return Recipe(
        name="grpo",
        paper="2402.03300",
        idea="compare each trajectory with its group instead of learning a critic",
        sampling=GroupPlan(size=8),
        advantage=GroupNormalized(eps=1e-6, ddof=1),
        ratio=TokenRatio(),
        surrogate=Clip(low=0.2, high=0.2),
        aggregation=SeqMeanTokenMean(),
        kl=KLPenalty(coef=0.04, estimator=KLEstimator.K3),
    )
