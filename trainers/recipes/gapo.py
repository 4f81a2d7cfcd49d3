"""GAPO: Generative Adversarial Policy Optimization (arXiv:2503.20194)."""

from dataclasses import replace

from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.ppo import ppo
from agentrl.trainers.reward_models.discriminator import Discriminator


@recipe
def gapo() -> Recipe:
    """PPO whose reward is a discriminator that learns in turn with the policy.

    All of PPO stays: critic, GAE, clip, KL in the reward. Any other recipe takes the reward just as well, such as
    `replace(grpo(), reward=Discriminator())`, which needs no critic. Differences from the authors' code:
    - the discriminator is a small network that starts with the run, not a Longformer (0.4 B) that learned before;
    - the policy's responses that a verifier finds good are good examples, not negatives;
    - scores are whitened, as the policy would otherwise chase their drift.

    Not to be confused with Gradient-Adaptive Policy Optimization, another GAPO.
    """
    return replace(
        ppo(),
        name="gapo",
        paper="2503.20194",
        idea="PPO on the scores of a discriminator that learns in turn with the policy",
        reward=Discriminator(),
    )
