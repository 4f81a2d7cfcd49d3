"""GMPO (arXiv:2507.20673) in plain Python floats (batch as in reference_tools).

The geometric mean over the tokens of |min(r A, clip(r, e^-clip, e^clip) A)|, with the sign of A.
"""

import math

from reference_tools import clamp, group_z_scores, mean


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    clip: float = 0.4,
    eps: float = 1e-6,
) -> float:
    terms = []
    for path, advantage in zip(paths, group_z_scores(rewards, tasks, eps), strict=True):
        if not path:
            continue
        product = 1.0
        for token in path:
            ratio = math.exp(new[token] - old[token])
            product *= abs(min(ratio * advantage, clamp(ratio, math.exp(-clip), math.exp(clip)) * advantage))
        terms.append(-math.copysign(product ** (1 / len(path)), advantage))
    return mean(terms)
