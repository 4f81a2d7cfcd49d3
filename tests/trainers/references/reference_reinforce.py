"""REINFORCE (Williams, 1992) with the batch mean as its baseline, in plain Python floats (batch as in reference_tools).

The return of a trajectory is its reward minus beta times the sum of k1 over its tokens. Every trajectory of the batch
counts in the baseline, whatever its task.
"""

import math

from reference_tools import Rows, broadcast, k1, mean, sequence_mean_token_sum


def advantages(
    paths: list[list[int]],
    rewards: list[float],
    old: list[float] | None = None,
    ref: list[float] | None = None,
    *,
    beta: float = 0.0,
) -> Rows:
    returns = list(rewards)
    if beta:
        assert old is not None
        assert ref is not None
        for i, path in enumerate(paths):
            returns[i] -= beta * math.fsum(k1(old[token], ref[token]) for token in path)
    return broadcast(paths, [mean([own - other for other in returns]) for own in returns])


def loss(
    paths: list[list[int]],
    rewards: list[float],
    new: list[float],
    old: list[float] | None = None,
    ref: list[float] | None = None,
    *,
    beta: float = 0.0,
) -> float:
    rows = advantages(paths, rewards, old, ref, beta=beta)
    return sequence_mean_token_sum(
        [[-a * new[token] for token, a in zip(path, row, strict=True)] for path, row in zip(paths, rows, strict=True)]
    )
