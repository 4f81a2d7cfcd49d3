"""DAPO written out from arXiv:2503.14476, equations 8 to 13, in plain Python floats (batch as in reference_grpo)."""

import math


def overlong(length: int, max_length: int, cache: int) -> float:
    if length <= max_length - cache:
        return 0.0
    if length <= max_length:
        return ((max_length - cache) - length) / cache
    return -1.0


def keeps(rewards: list[float]) -> bool:
    """Equation 11 for rewards that need not be binary: a group whose members all got the same is not used."""
    return len(set(rewards)) > 1


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    max_length: int,
    cache: int,
    masked: list[bool],
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    eps: float = 1e-6,
) -> float:
    """`masked[i]`: overlong filtering takes trajectory i out of the loss, not out of its group's statistics."""
    shaped = [reward + overlong(len(path), max_length, cache) for reward, path in zip(rewards, paths, strict=True)]
    total, num_tokens = 0.0, 0
    for i, path in enumerate(paths):
        if masked[i]:
            continue
        group = [shaped[j] for j in range(len(paths)) if tasks[j] == tasks[i]]
        mean = math.fsum(group) / len(group)
        if max(group) > min(group):
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in group) / (len(group) - 1))
            advantage = (shaped[i] - mean) / (std + eps)
        else:
            advantage = 0.0
        for token in path:
            num_tokens += 1
            ratio = math.exp(new[token] - old[token])
            low, high = 1 - clip_low, 1 + clip_high
            total += min(ratio * advantage, min(max(ratio, low), high) * advantage)
    return -total / num_tokens
