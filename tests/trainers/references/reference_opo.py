"""OPO (arXiv:2505.23585) in plain Python floats (batch as in reference_tools).

The baseline of a group is the mean of its rewards weighted by length. On strictly on-policy data the ratio is 1.
"""

import math

from reference_tools import Rows, broadcast, clipped, members, token_mean


def advantages(paths: list[list[int]], rewards: list[float], tasks: list[int]) -> Rows:
    scores = [0.0] * len(paths)
    for group in members(tasks):
        num_tokens = sum(len(paths[j]) for j in group)
        for i in group:
            if num_tokens:
                scores[i] = math.fsum(len(paths[j]) * (rewards[i] - rewards[j]) for j in group) / num_tokens
    return broadcast(paths, scores)


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    clip: float = 0.2,
) -> float:
    return token_mean(
        [
            [-clipped(math.exp(new[token] - old[token]), a, clip, clip) for token, a in zip(path, row, strict=True)]
            for path, row in zip(paths, advantages(paths, rewards, tasks), strict=True)
        ]
    )
