"""CISPO: Clipped Importance-Sampling-weight Policy Optimization (MiniMax-M1, arXiv:2506.13585)."""

from dataclasses import replace

from agentrl.trainers.aggregation import TokenMean
from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.soft_surrogates import DetachedRatio


@recipe
def cispo() -> Recipe:
    """The clip bounds a detached weight on A log pi, so that no token ever loses its gradient.

    The paper leaves the lower side open and does not print the upper bound. 1 + 4 is what TRL recommends (its
    `epsilon_high` is that absolute 5.0); verl's example writes the distance 0.2 for the same parameter: numbers of
    one library do not carry over to the other.
    """
    return replace(
        grpo(),
        name="cispo",
        paper="2506.13585",
        idea="bound the weight of a token instead of cutting its gradient",
        surrogate=DetachedRatio(high=4.0),
        aggregation=TokenMean(),
        kl=None,
    )
