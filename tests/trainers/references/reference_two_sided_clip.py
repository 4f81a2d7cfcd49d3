"""Two-sided clip (INTELLECT-2, arXiv:2505.07291) in plain Python floats (batch as in reference_tools)."""

import math

from reference_tools import clamp, group_z_scores, token_mean


def objective(ratio: float, advantage: float, low: float, high: float, delta: float) -> float:
    """The ratio outside the clip is at most delta > 1 + high: a bound for negative advantages."""
    return min(min(ratio, delta) * advantage, clamp(ratio, 1 - low, 1 + high) * advantage)


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    delta: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    eps: float = 1e-6,
) -> float:
    rows = []
    for path, advantage in zip(paths, group_z_scores(rewards, tasks, eps), strict=True):
        ratios = [math.exp(new[token] - old[token]) for token in path]
        rows.append([-objective(ratio, advantage, clip_low, clip_high, delta) for ratio in ratios])
    return token_mean(rows)
