"""TRPO: Trust Region Policy Optimization (arXiv:1502.05477)."""

import math
from dataclasses import replace

from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.ppo import ppo
from agentrl.trainers.surrogates import Clip
from agentrl.trainers.trust_region import TrustRegion
from agentrl.trainers.value_loss import ValueLoss


@recipe
def trpo() -> Recipe:
    """PPO's predecessor: no clip, but one natural-gradient step per update that may move the policy by 0.01 nats.

    The bound is on the mean KL of whole next-token distributions at the sampled tokens, old against new; a line search
    enforces it. No learning rate; epochs and mini-batches are the critic's. The paper estimates advantages from returns
    alone; GAE with a critic came with its successors. Needs float32, memory for those distributions and attention
    without fused kernels: for adapters and small models. No library for language models has it.
    """
    return replace(
        ppo(),
        name="trpo",
        paper="1502.05477",
        idea="one natural-gradient step per update, as far as a bound on the KL divergence allows",
        surrogate=Clip(low=math.inf, high=math.inf),
        kl=None,
        value_loss=ValueLoss(clip=None),
        trust_region=TrustRegion(max_kl=0.01, cg_iterations=10, damping=0.1),
    )
