"""Clip-Cov (arXiv:2505.22617) in plain Python floats (batch as in reference_tools).

A random few of the tokens whose covariance lies in an interval contribute nothing, neither value nor gradient; the
others enter PPO's clipped objective. The mean is over all tokens, selected ones included.
"""

import math

from reference_covariance import Position, covariances
from reference_tools import Rows, broadcast, clipped, group_z_scores, token_mean


def candidates(
    paths: list[list[int]], token_advantages: Rows, frozen: list[float], *, low: float = 1.0, high: float = 5.0
) -> set[Position]:
    """What the selection is drawn from; how many: num_selected(tokens, 2e-4), or all if there are fewer."""
    return {where for where, cov in covariances(paths, token_advantages, frozen).items() if low < cov < high}


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    selected: set[Position],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    eps: float = 1e-6,
) -> float:
    rows = []
    for i, row in enumerate(broadcast(paths, group_z_scores(rewards, tasks, eps))):
        terms = []
        for t, advantage in enumerate(row):
            ratio = math.exp(new[paths[i][t]] - old[paths[i][t]])
            terms.append(0.0 if (i, t) in selected else -clipped(ratio, advantage, clip_low, clip_high))
        rows.append(terms)
    return token_mean(rows)
