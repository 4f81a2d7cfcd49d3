"""CISPO (MiniMax-M1, arXiv:2506.13585) in plain Python floats (`frozen` as in reference_tools).

The clipped ratio is a constant weight of A log pi: no token loses its gradient.
"""

import math

from reference_tools import clamp, group_z_scores, token_mean


def bounded_loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    smallest: float,
    largest: float,
    eps: float,
    frozen: list[float] | None,
) -> float:
    frozen = new if frozen is None else frozen
    rows = []
    for path, advantage in zip(paths, group_z_scores(rewards, tasks, eps), strict=True):
        weights = [clamp(math.exp(frozen[token] - old[token]), smallest, largest) for token in path]
        rows.append([-weight * advantage * new[token] for token, weight in zip(path, weights, strict=True)])
    return token_mean(rows)


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    low: float = 10.0,
    high: float = 0.2,
    eps: float = 1e-6,
    frozen: list[float] | None = None,
) -> float:
    """The paper's: relative bounds [1 - low, 1 + high]; low >= 1 is no lower bound."""
    return bounded_loss(paths, rewards, tasks, new, old, smallest=1 - low, largest=1 + high, eps=eps, frozen=frozen)


def trl_loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    largest: float = 5.0,
    eps: float = 1e-4,
    frozen: list[float] | None = None,
) -> float:
    """TRL's: one absolute upper bound."""
    return bounded_loss(paths, rewards, tasks, new, old, smallest=0.0, largest=largest, eps=eps, frozen=frozen)
