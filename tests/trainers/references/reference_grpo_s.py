"""GRPO-S (arXiv:2508.04349) in plain Python floats: GTPO's shaping on the mean entropy of a whole trajectory.

A trajectory without tokens has no entropy and stands outside; the shaped rewards of the group's successes and of its
failures are normalised apart. The ratio is the arithmetic mean of the token ratios.
"""

import math

from reference_tools import Rows, broadcast, clipped, mean, members, z_scores


def shaped_rewards(
    paths: list[list[int]],
    tasks: list[int],
    successes: list[bool],
    entropy: list[float],
    *,
    beta1: float = 1.0,
    beta2: float = 0.1,
    eps: float = 1e-8,
) -> list[float]:
    result = [0.0] * len(paths)
    for kin in members(list(zip(tasks, successes, strict=True))):
        averages = {i: max(mean([entropy[token] for token in paths[i]]), eps) for i in kin if paths[i]}
        shares = {i: h if successes[i] else 1 / h for i, h in averages.items()}
        for i, share in shares.items():
            bonus = beta1 + beta2 * share / math.fsum(shares.values()) * len(shares)
            result[i] = bonus if successes[i] else -bonus
    return result


def advantages(
    paths: list[list[int]],
    tasks: list[int],
    successes: list[bool],
    entropy: list[float],
    *,
    beta1: float = 1.0,
    beta2: float = 0.1,
    eps: float = 1e-8,
) -> Rows:
    shaped = shaped_rewards(paths, tasks, successes, entropy, beta1=beta1, beta2=beta2, eps=eps)
    scores = [0.0] * len(paths)
    for kin in members(list(zip(tasks, successes, strict=True))):
        there = [i for i in kin if paths[i]]
        for i, score in zip(there, z_scores([shaped[i] for i in there], eps), strict=True):
            scores[i] = score
    return broadcast(paths, scores)


def loss(
    paths: list[list[int]],
    tasks: list[int],
    successes: list[bool],
    entropy: list[float],
    new: list[float],
    old: list[float],
    *,
    beta1: float = 1.0,
    beta2: float = 0.1,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    eps: float = 1e-8,
) -> float:
    terms = []
    for path, row in zip(
        paths, advantages(paths, tasks, successes, entropy, beta1=beta1, beta2=beta2, eps=eps), strict=True
    ):
        if path:
            ratio = mean([math.exp(new[token] - old[token]) for token in path])
            terms.append(-clipped(ratio, row[0], clip_low, clip_high))
    return mean(terms)
