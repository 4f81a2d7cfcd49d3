"""KTO (arXiv:2402.01306) in plain Python floats: labels, not pairs.

`mismatched` are paths whose completion belongs to another task than its prompt; their mean log-ratio, at least 0, is
the reference point z0. No gradient runs through it: compute it from the detached log-probabilities and pass it on.
"""

import math

from reference_tools import mean, sigmoid


def log_ratio(path: list[int], new: list[float], ref: list[float]) -> float:
    return math.fsum(new[token] - ref[token] for token in path)


def reference_point(mismatched: list[list[int]], frozen: list[float], ref: list[float]) -> float:
    ratios = [log_ratio(path, frozen, ref) for path in mismatched if path]
    return max(0.0, mean(ratios)) if ratios else 0.0


def loss(
    paths: list[list[int]],
    desirable: list[bool],
    new: list[float],
    ref: list[float],
    z0: float,
    *,
    beta: float = 0.1,
    weight_desirable: float = 1.0,
    weight_undesirable: float = 1.0,
) -> float:
    terms = []
    for path, good in zip(paths, desirable, strict=True):
        if path:
            gain = beta * (log_ratio(path, new, ref) - z0)
            terms.append(weight_desirable * (1 - sigmoid(gain)) if good else weight_undesirable * (1 - sigmoid(-gain)))
    return mean(terms)
