"""Dr. GRPO written out from arXiv:2503.20783, section 3.2, in plain Python floats (batch as in reference_grpo)."""

import math


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    length: int,
    clip: float = 0.2,
) -> float:
    total = 0.0
    for i in range(len(paths)):
        siblings = [j for j in range(len(paths)) if tasks[j] == tasks[i]]
        # R_i - mean_j R_j written as a mean of differences: exactly 0 when all rewards are equal.
        advantage = math.fsum(rewards[i] - rewards[j] for j in siblings) / len(siblings)
        for token in paths[i]:
            ratio = math.exp(new[token] - old[token])
            if advantage >= 0:
                total -= min(ratio, 1 + clip) * advantage
            else:
                total -= max(ratio, 1 - clip) * advantage
    num_paths = sum(1 for path in paths if path)
    return total / (num_paths * length)
