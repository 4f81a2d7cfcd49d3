"""Sampler-to-trainer correction (TIS, MIS, IcePop) in plain Python floats (batch as in reference_tools).

w = pi_old / pi_sampler of a token, the product over its trajectory, or the geometric mean over it. What lies outside
[low, high] is moved to the bound ("truncate") or becomes 0 ("mask"). The weight multiplies the loss of the token, a
constant for the gradient; denominators keep all tokens.
"""

import math

from reference_tools import Rows, clamp, clipped, group_z_scores, token_mean


def raw_weight(path: list[int], position: int, old: list[float], sampler: list[float], level: str) -> float:
    ratios = [math.exp(old[token]) / math.exp(sampler[token]) for token in path]
    if level == "token":
        return ratios[position]
    product = math.prod(ratios)
    return product if level == "sequence" else product ** (1 / len(path))


def weights(
    paths: list[list[int]],
    old: list[float],
    sampler: list[float],
    *,
    level: str = "token",
    action: str = "truncate",
    low: float = 0.0,
    high: float = 2.0,
) -> Rows:
    rows = []
    for path in paths:
        raw = [raw_weight(path, t, old, sampler, level) for t in range(len(path))]
        if action == "truncate":
            rows.append([clamp(w, low, high) for w in raw])
        else:
            rows.append([w if low <= w <= high else 0.0 for w in raw])
    return rows


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    token_weights: Rows,
    *,
    clip: float = 0.2,
    eps: float = 1e-6,
) -> float:
    """GRPO's clipped objective, weighted, mean over all tokens."""
    rows = []
    for path, advantage, row in zip(paths, group_z_scores(rewards, tasks, eps), token_weights, strict=True):
        ratios = [math.exp(new[token] - old[token]) for token in path]
        rows.append([-w * clipped(ratio, advantage, clip, clip) for w, ratio in zip(row, ratios, strict=True)])
    return token_mean(rows)
