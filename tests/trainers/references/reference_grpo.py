"""GRPO written out from DeepSeekMath (arXiv:2402.03300), equations 3 and 4, in plain Python floats.

A batch is a list of paths; a path is the list of ids of its tokens, and `new`, `old`, `ref` hold the log-probability
of each id. A path without tokens has no mean over tokens: it is left out of the average over trajectories, but its
reward takes part in the statistics of its group.
"""

import math


def advantages(rewards: list[float], tasks: list[int], eps: float) -> list[float]:
    result = []
    for reward, task in zip(rewards, tasks, strict=True):
        group = [other for other, where in zip(rewards, tasks, strict=True) if where == task]
        if all(other == group[0] for other in group):
            result.append(0.0)
            continue
        mean = math.fsum(group) / len(group)
        variance = math.fsum((other - mean) ** 2 for other in group) / (len(group) - 1)
        result.append((reward - mean) / (math.sqrt(variance) + eps))
    return result


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    clip: float = 0.2,
    beta: float = 0.04,
    eps: float = 1e-6,
) -> float:
    objective, num_paths = 0.0, 0
    for path, advantage in zip(paths, advantages(rewards, tasks, eps), strict=True):
        if not path:
            continue
        num_paths += 1
        per_path = 0.0
        for token in path:
            ratio = math.exp(new[token]) / math.exp(old[token])
            clipped = 1 - clip if ratio < 1 - clip else 1 + clip if ratio > 1 + clip else ratio
            ref_over_new = math.exp(ref[token]) / math.exp(new[token])
            kl = ref_over_new - math.log(ref_over_new) - 1
            per_path += min(ratio * advantage, clipped * advantage) - beta * kl
        objective += per_path / len(path)
    return -objective / num_paths
