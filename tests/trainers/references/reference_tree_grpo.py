"""Tree-GRPO (arXiv:2509.21240) in plain Python floats (batch as in reference_tools).

A leaf's advantage is its z-score among the leaves of its tree plus its z-score among all leaves of its task.
`roots[i]`: which tree of its task trajectory i belongs to.
"""

import math

from reference_tools import Rows, broadcast, clipped, group_z_scores, k3, token_mean


def advantages(
    paths: list[list[int]], rewards: list[float], tasks: list[int], roots: list[int], *, eps: float = 1e-6
) -> Rows:
    intra = group_z_scores(rewards, list(zip(tasks, roots, strict=True)), eps)
    inter = group_z_scores(rewards, tasks, eps)
    return broadcast(paths, [a + b for a, b in zip(intra, inter, strict=True)])


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    roots: list[int],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    clip: float = 0.2,
    beta: float = 0.001,
    eps: float = 1e-6,
) -> float:
    rows = []
    for path, row in zip(paths, advantages(paths, rewards, tasks, roots, eps=eps), strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            objective = clipped(math.exp(new[token] - old[token]), advantage, clip, clip)
            terms.append(beta * k3(new[token], ref[token]) - objective if beta else -objective)
        rows.append(terms)
    return token_mean(rows)
