"""KL-Cov (arXiv:2505.22617) in plain Python floats (batch as in reference_tools).

The few tokens of largest covariance pay for KL(old || new), estimated on the sampled token: log(old / new) or, with
`absolute`, its absolute value. The ratio is not clipped.
"""

import math

from reference_covariance import Position, covariances, num_selected
from reference_tools import Rows, broadcast, clipped, group_z_scores, token_mean


def selected(
    paths: list[list[int]], token_advantages: Rows, frozen: list[float], *, fraction: float = 2e-4
) -> set[Position]:
    ranked = sorted(covariances(paths, token_advantages, frozen).items(), key=lambda item: -item[1])
    return {where for where, _ in ranked[: num_selected(len(ranked), fraction)]}


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    chosen: set[Position],
    *,
    coefficient: float = 0.1,
    absolute: bool = True,
    clip: float = math.inf,
    eps: float = 1e-6,
) -> float:
    rows = []
    for i, row in enumerate(broadcast(paths, group_z_scores(rewards, tasks, eps))):
        terms = []
        for t, advantage in enumerate(row):
            log_ratio = new[paths[i][t]] - old[paths[i][t]]
            kl = (abs(log_ratio) if absolute else -log_ratio) if (i, t) in chosen else 0.0
            terms.append(coefficient * kl - clipped(math.exp(log_ratio), advantage, clip, clip))
        rows.append(terms)
    return token_mean(rows)
