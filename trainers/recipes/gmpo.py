"""GMPO: Geometric-Mean Policy Optimization (arXiv:2507.20673)."""

from dataclasses import replace

from agentrl.trainers.recipe import Recipe, recipe
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.soft_surrogates import GeometricClip


@recipe
def gmpo() -> Recipe:
    """The geometric mean of a trajectory's clipped token ratios, where GRPO has the arithmetic mean.

    Tokens are clipped one by one, in log space and only on the side that the advantage pushes to (e^-0.4 to e^0.4,
    wider than GRPO's), before they are averaged; GSPO averages first and clips the mean.
    """
    return replace(
        grpo(),
        name="gmpo",
        paper="2507.20673",
        idea="geometric mean of clipped token ratios, robust against outliers",
        surrogate=GeometricClip(width=0.4),
        kl=None,
    )
