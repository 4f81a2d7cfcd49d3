"""PPO: Proximal Policy Optimization (arXiv:1707.06347)."""

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.gae import GAE
from agentrl.trainers.kl import KLEstimator, KLPenalty, KLPlace
from agentrl.trainers.ratios import TokenRatio
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.surrogates import Clip
from agentrl.trainers.value_loss import ValueLoss


@recipe
def ppo() -> Recipe:
    """A critic says what each state is worth, and tokens are credited with what came better than expected.

    Clip 0.2 is the paper's. Its control tasks have gamma 0.99 and lambda 0.95; for language models verl sets both to 1,
    as here: an episode of a thousand tokens must not discount its outcome away, and at lambda 1 a critic that knows
    nothing yet does no harm, the advantage being return minus value. A critic that is good (explained variance near 1)
    allows `GAE(lam=0.95)`, which varies less. KL in the reward is k1 of the sampling policy, 0.001 as in verl, which
    can adapt it towards a target; OpenRLHF starts at 0.01. `Clip(dual=3.0)` is verl's addition. Whitening as in verl.

    Nothing is compared within a task: eight trajectories of each fill the batch, and the prompt is computed once.
    """
    return Recipe(
        name="ppo",
        paper="1707.06347",
        idea="learn a critic, credit every token with what came better than expected, clip the ratio",
        sampling=GroupPlan(size=8),
        advantage=GAE(gamma=1.0, lam=1.0),
        ratio=TokenRatio(),
        surrogate=Clip(low=0.2, high=0.2),
        aggregation=TokenMean(),
        kl=KLPenalty(coef=0.001, estimator=KLEstimator.K1, place=KLPlace.REWARD),
        value_loss=ValueLoss(clip=0.5),
    )
