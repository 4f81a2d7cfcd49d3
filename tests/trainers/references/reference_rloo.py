"""RLOO (arXiv:2402.14740) in plain Python floats (batch as in reference_tools).

A whole trajectory is one action: its return is the reward minus beta times the summed k1, its baseline the mean return
of the others of its group, its log-probability the sum over its tokens. A group of one has advantage 0.
"""

import math

from reference_tools import Rows, broadcast, clipped, k1, mean, members, sequence_mean_token_sum


def scores(
    paths: list[list[int]], rewards: list[float], tasks: list[int], old: list[float], ref: list[float], beta: float
) -> list[float]:
    returns = list(rewards)
    if beta:
        for i, path in enumerate(paths):
            returns[i] -= beta * math.fsum(k1(old[token], ref[token]) for token in path)
    result = [0.0] * len(paths)
    for group in members(tasks):
        for i in group:
            others = [j for j in group if j != i]
            result[i] = mean([returns[i] - returns[j] for j in others]) if others else 0.0
    return result


def advantages(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.05,
) -> Rows:
    return broadcast(paths, scores(paths, rewards, tasks, old, ref, beta))


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.05,
) -> float:
    """The paper's: no ratio, sum over the tokens of a trajectory, mean over trajectories."""
    rows = advantages(paths, rewards, tasks, old, ref, beta=beta)
    return sequence_mean_token_sum(
        [[-a * new[token] for token, a in zip(path, row, strict=True)] for path, row in zip(paths, rows, strict=True)]
    )


def trl_loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.05,
    clip: float = 0.2,
) -> float:
    """TRL's: one clipped ratio per trajectory, the product of its token ratios (no root)."""
    terms = []
    for path, advantage in zip(paths, scores(paths, rewards, tasks, old, ref, beta), strict=True):
        if path:
            product = math.prod(math.exp(new[token] - old[token]) for token in path)
            terms.append(-clipped(product, advantage, clip, clip))
    return mean(terms)
