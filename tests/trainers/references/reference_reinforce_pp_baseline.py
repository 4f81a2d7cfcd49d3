"""REINFORCE++-baseline (arXiv:2501.03262) in plain Python floats (batch as in reference_tools).

The group mean is subtracted, then all tokens of the batch are whitened together; the KL term is k2, in the loss.
A group without contrast enters the whitening with 0 and leaves it with -mean / std, which need not be 0.
"""

import math

from reference_tools import Rows, broadcast, clipped, group_centred, k2, token_mean, whiten


def advantages(paths: list[list[int]], rewards: list[float], tasks: list[int]) -> Rows:
    return whiten(broadcast(paths, group_centred(rewards, tasks)))


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.01,
    clip: float = 0.2,
) -> float:
    rows = []
    for path, row in zip(paths, advantages(paths, rewards, tasks), strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            ratio = math.exp(new[token] - old[token])
            kl = beta * k2(new[token], ref[token]) if beta else 0.0
            terms.append(-clipped(ratio, advantage, clip, clip) + kl)
        rows.append(terms)
    return token_mean(rows)
