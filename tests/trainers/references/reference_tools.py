"""List helpers of the references: plain Python floats, one short function per term of the papers.

A batch is a list of paths; a path is the list of ids of the tokens that the policy sampled on one trajectory (a token
may lie on several paths and then counts once per path). `Rows` hold one number per token of every path.

What carries a stop-gradient in a paper is computed from `frozen`, the detached copy of `new` (`None`: `new` itself).
Central differences of a loss in `new` with `frozen` held fixed are therefore the gradient that training must see.
"""

import math
from collections.abc import Callable, Hashable, Sequence

Rows = list[list[float]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def sample_std(values: Sequence[float]) -> float:
    """With n - 1 in the denominator; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def z_scores(values: Sequence[float], eps: float) -> list[float]:
    """(x - mean) / (std + eps); exactly 0 where there is no contrast."""
    if all(value == values[0] for value in values):
        return [0.0] * len(values)
    centre, spread = mean(values), sample_std(values)
    return [(value - centre) / (spread + eps) for value in values]


def members(keys: Sequence[Hashable]) -> list[list[int]]:
    """The indices that have the same key, one list per key."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def group_z_scores(values: Sequence[float], keys: Sequence[Hashable], eps: float) -> list[float]:
    result = [0.0] * len(values)
    for group in members(keys):
        for index, score in zip(group, z_scores([values[j] for j in group], eps), strict=True):
            result[index] = score
    return result


def group_centred(values: Sequence[float], keys: Sequence[Hashable]) -> list[float]:
    """x_i - mean_j x_j as a mean of differences: exactly 0 where there is no contrast."""
    result = [0.0] * len(values)
    for group in members(keys):
        for i in group:
            result[i] = mean([values[i] - values[j] for j in group])
    return result


def broadcast(paths: list[list[int]], per_path: list[float]) -> Rows:
    return [[value] * len(path) for path, value in zip(paths, per_path, strict=True)]


def flat(rows: Rows) -> list[float]:
    return [value for row in rows for value in row]


def whiten(rows: Rows) -> Rows:
    """(x - mean) / sqrt(var + 1e-8) over all tokens of the batch; exactly 0 where there is no contrast."""
    values = flat(rows)
    if all(value == values[0] for value in values):
        return [[0.0] * len(row) for row in rows]
    centre, variance = mean(values), sample_std(values) ** 2
    return [[(value - centre) / math.sqrt(variance + 1e-8) for value in row] for row in rows]


def token_mean(rows: Rows) -> float:
    return mean(flat(rows))


def sequence_mean_token_mean(rows: Rows) -> float:
    return mean([mean(row) for row in rows if row])


def sequence_mean_token_sum(rows: Rows) -> float:
    return mean([math.fsum(row) for row in rows if row])


def clamp(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    """The objective of PPO, to be maximised: the ratio is clipped to [1 - low, 1 + high]."""
    return min(ratio * advantage, clamp(ratio, 1 - low, 1 + high) * advantage)


def k1(logp: float, ref: float) -> float:
    return logp - ref


def k2(logp: float, ref: float) -> float:
    return (logp - ref) ** 2 / 2


def k3(logp: float, ref: float) -> float:
    return math.exp(ref - logp) - (ref - logp) - 1


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value >= 0 else value - math.log1p(math.exp(value))


def gradient(loss: Callable[[list[float]], float], point: list[float], step: float = 1e-5) -> list[float]:
    """Central differences of `loss` at `point`."""
    result = []
    for index in range(len(point)):
        up, down = list(point), list(point)
        up[index] += step
        down[index] -= step
        result.append((loss(up) - loss(down)) / (2 * step))
    return result
