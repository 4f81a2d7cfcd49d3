"""GSPO (arXiv:2507.18071) in plain Python floats (batch as in reference_tools)."""

import math

from reference_tools import clipped, group_z_scores, mean


def sequence_ratio(path: list[int], new: list[float], old: list[float]) -> float:
    """(pi(y) / pi_old(y)) ^ (1 / |y|)."""
    return math.prod(math.exp(new[token] - old[token]) for token in path) ** (1 / len(path))


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    eps: float = 1e-6,
) -> float:
    terms = []
    for path, advantage in zip(paths, group_z_scores(rewards, tasks, eps), strict=True):
        if path:
            terms.append(-clipped(sequence_ratio(path, new, old), advantage, clip_low, clip_high))
    return mean(terms)
