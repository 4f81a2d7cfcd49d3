"""Clip-Cov and KL-Cov (The Entropy Mechanism of RL for Reasoning Language Models, arXiv:2505.22617)."""

from dataclasses import replace

from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.covariance import ClipCov, KLCov
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.surrogates import Clip


@recipe
def clip_cov() -> Recipe:
    """GRPO, and of the tokens whose covariance of log-probability and advantage lies in (1, 5), a few get no gradient.

    A fraction of 2e-4 of all tokens, drawn at random, at least one. The interval depends on the scale of advantages
    and log-probabilities: the paper's is for z-scores on models of 7B.
    """
    return replace(
        grpo(),
        name="clip_cov",
        paper="2505.22617",
        idea="drop a few tokens that would cost most entropy",
        surrogate=ClipCov(clip=Clip(low=0.2, high=0.2), fraction=2e-4, low=1.0, high=5.0),
        aggregation=TokenMean(),
        kl=None,
    )


@recipe
def kl_cov() -> Recipe:
    """The plain ratio without a clip, and a penalty on moving for 2e-4 of all tokens: those of largest covariance."""
    return replace(
        clip_cov(),
        name="kl_cov",
        idea="hold back the tokens that would cost most entropy by a KL penalty",
        surrogate=KLCov(fraction=2e-4, coef=0.1),
    )
