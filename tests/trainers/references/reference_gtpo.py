"""GTPO (arXiv:2508.04349) in plain Python floats: the share of a token in the entropy of its time step is its credit.

At step t the d_t successful trajectories of a group that have a token there share (alpha1 + alpha2) d_t by entropy;
the h_t failed ones share -(alpha1 + alpha2) h_t by inverse entropy. The shaped rewards are normalised apart: over all
tokens of the group's successes, and over all tokens of its failures. An entropy below eps counts as eps.
"""

import math

from reference_tools import Rows, clipped, members, token_mean, z_scores


def shaped_rewards(
    paths: list[list[int]],
    tasks: list[int],
    successes: list[bool],
    entropy: list[float],
    *,
    alpha1: float = 1.0,
    alpha2: float = 0.1,
    eps: float = 1e-8,
) -> Rows:
    rows: Rows = [[] for _ in paths]
    for i, path in enumerate(paths):
        kin = [j for j in range(len(paths)) if tasks[j] == tasks[i] and successes[j] == successes[i]]
        for t in range(len(path)):
            floored = {j: max(entropy[paths[j][t]], eps) for j in kin if len(paths[j]) > t}
            shares = {j: h if successes[i] else 1 / h for j, h in floored.items()}
            bonus = alpha1 + alpha2 * shares[i] / math.fsum(shares.values()) * len(shares)
            rows[i].append(bonus if successes[i] else -bonus)
    return rows


def advantages(
    paths: list[list[int]],
    tasks: list[int],
    successes: list[bool],
    entropy: list[float],
    *,
    alpha1: float = 1.0,
    alpha2: float = 0.1,
    eps: float = 1e-8,
) -> Rows:
    shaped = shaped_rewards(paths, tasks, successes, entropy, alpha1=alpha1, alpha2=alpha2, eps=eps)
    rows: Rows = [[] for _ in paths]
    for kin in members(list(zip(tasks, successes, strict=True))):
        owners = [i for i in kin for _ in paths[i]]
        pooled = [value for i in kin for value in shaped[i]]
        for owner, score in zip(owners, z_scores(pooled, eps), strict=True):
            rows[owner].append(score)
    return rows


def loss(
    paths: list[list[int]],
    tasks: list[int],
    successes: list[bool],
    entropy: list[float],
    new: list[float],
    old: list[float],
    *,
    alpha1: float = 1.0,
    alpha2: float = 0.1,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    eps: float = 1e-8,
) -> float:
    given = advantages(paths, tasks, successes, entropy, alpha1=alpha1, alpha2=alpha2, eps=eps)
    rows = []
    for path, row in zip(paths, given, strict=True):
        ratios = [math.exp(new[token] - old[token]) for token in path]
        rows.append([-clipped(ratio, a, clip_low, clip_high) for ratio, a in zip(ratios, row, strict=True)])
    return token_mean(rows)
