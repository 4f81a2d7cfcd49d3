"""Loss on high-entropy tokens only (arXiv:2506.01939) in plain Python floats (batch as in reference_tools).

Tokens whose entropy is at or above the quantile 1 - top of all tokens of the batch keep their loss; denominators keep
all tokens.
"""

import math

from reference_tools import clipped, flat, group_z_scores, token_mean


def threshold(values: list[float], top: float) -> float:
    """The quantile with linear interpolation between the two neighbours."""
    ordered = sorted(values)
    place = (1 - top) * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def mask(paths: list[list[int]], entropy: list[float], *, top: float = 0.2) -> list[list[bool]]:
    bound = threshold(flat([[entropy[token] for token in path] for path in paths]), top)
    return [[entropy[token] >= bound for token in path] for path in paths]


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    entropy: list[float],
    new: list[float],
    old: list[float],
    *,
    top: float = 0.2,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    eps: float = 1e-6,
) -> float:
    rows = []
    for path, advantage, keeps in zip(
        paths, group_z_scores(rewards, tasks, eps), mask(paths, entropy, top=top), strict=True
    ):
        ratios = [math.exp(new[token] - old[token]) for token in path]
        losses = [-clipped(ratio, advantage, clip_low, clip_high) for ratio in ratios]
        rows.append([value if keep else 0.0 for value, keep in zip(losses, keeps, strict=True)])
    return token_mean(rows)
