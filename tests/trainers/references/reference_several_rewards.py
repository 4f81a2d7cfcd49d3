"""Several rewards per trajectory, in plain Python floats: GDPO (arXiv:2601.05242) and the usual sum.

`components[i]` are the rewards of trajectory i, one per reward function. Both give advantages, not losses.
"""

import math

from reference_tools import Rows, broadcast, group_z_scores, mean, sample_std, z_scores


def weighted_sum(components: list[list[float]], weights: list[float]) -> list[float]:
    return [math.fsum(w * value for w, value in zip(weights, row, strict=True)) for row in components]


def sum_then_normalize(
    paths: list[list[int]], components: list[list[float]], tasks: list[int], *, weights: list[float], eps: float = 1e-6
) -> Rows:
    return broadcast(paths, group_z_scores(weighted_sum(components, weights), tasks, eps))


def summed_scores(components: list[list[float]], tasks: list[int], weights: list[float], eps: float) -> list[float]:
    """Every component normalised in the group, then added up: before the normalisation of the batch."""
    columns = [group_z_scores(list(column), tasks, eps) for column in zip(*components, strict=True)]
    return weighted_sum([list(row) for row in zip(*columns, strict=True)], weights)


def normalize_then_sum(
    paths: list[list[int]],
    components: list[list[float]],
    tasks: list[int],
    *,
    weights: list[float],
    eps: float = 1e-6,
    over_tokens: bool = False,
) -> Rows:
    """The batch is all trajectories or, with `over_tokens`, all tokens, so that long trajectories weigh more."""
    summed = summed_scores(components, tasks, weights, eps)
    if not over_tokens:
        return broadcast(paths, z_scores(summed, eps))
    values = [score for score, path in zip(summed, paths, strict=True) for _ in path]
    if all(value == values[0] for value in values):
        return broadcast(paths, [0.0] * len(paths))
    centre, scale = mean(values), math.sqrt(sample_std(values) ** 2 + 1e-8)
    return broadcast(paths, [(score - centre) / scale for score in summed])
