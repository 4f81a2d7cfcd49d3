"""REINFORCE++ (arXiv:2501.03262) in plain Python floats (batch as in reference_tools).

A token's reward is -beta * k1, the last one's has the outcome on top; the return-to-go is whitened over all tokens of
the batch and enters PPO's clipped objective, averaged over tokens. No group takes part.
"""

import math

from reference_tools import Rows, clipped, k1, token_mean, whiten


def advantages(
    paths: list[list[int]],
    rewards: list[float],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.01,
    gamma: float = 1.0,
) -> Rows:
    rows = []
    for path, outcome in zip(paths, rewards, strict=True):
        given = [-beta * k1(old[token], ref[token]) if beta else 0.0 for token in path]
        if path:
            given[-1] += outcome
        rows.append([math.fsum(gamma ** (k - t) * given[k] for k in range(t, len(path))) for t in range(len(path))])
    return whiten(rows)


def loss(
    paths: list[list[int]],
    rewards: list[float],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.01,
    gamma: float = 1.0,
    clip: float = 0.2,
) -> float:
    rows = advantages(paths, rewards, old, ref, beta=beta, gamma=gamma)
    return token_mean(
        [
            [-clipped(math.exp(new[token] - old[token]), a, clip, clip) for token, a in zip(path, row, strict=True)]
            for path, row in zip(paths, rows, strict=True)
        ]
    )
