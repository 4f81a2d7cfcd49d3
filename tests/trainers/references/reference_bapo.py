"""BAPO (arXiv:2510.18927, equations 5 and 8, algorithm 1) in plain Python floats (`frozen` as in reference_tools).

The ratio is against the sampler. The bounds are absolute ratios; they start narrow and widen until the positive tokens
contribute their share. What a token contributes: its clipped objective (`"value"`, the paper's equation 8 to the
letter) or its gradient, which is 0 where the clip is active (`"gradient"`). A token counts once per path it lies on.
"""

import math

from reference_tools import clamp, group_z_scores, mean

Token = tuple[float, float, float]
"""Advantage, ratio, weight."""


def batch_tokens(
    paths: list[list[int]], per_path: list[float], frozen: list[float], sampler: list[float], weighted: bool
) -> list[Token]:
    return [
        (advantage, math.exp(frozen[token] - sampler[token]), math.exp(sampler[token]) if weighted else 1.0)
        for path, advantage in zip(paths, per_path, strict=True)
        for token in path
    ]


def contribution(token: Token, low: float, high: float, accounting: str) -> float:
    advantage, ratio, weight = token
    if accounting == "value":
        return weight * abs(min(ratio * advantage, clamp(ratio, low, high) * advantage))
    active = ratio <= high if advantage > 0 else ratio >= low
    return weight * ratio * abs(advantage) if active else 0.0


def positive_share(tokens: list[Token], low: float, high: float, accounting: str) -> float:
    """Between 0 and 1; 1 where nothing contributes, so that nothing needs to be widened."""
    positive = math.fsum(contribution(token, low, high, accounting) for token in tokens if token[0] > 0)
    total = math.fsum(contribution(token, low, high, accounting) for token in tokens)
    return positive / total if total else 1.0


def search(
    tokens: list[Token],
    *,
    share: float = 0.4,
    low: tuple[float, float] = (0.6, 0.9),
    high: tuple[float, float] = (1.2, 3.0),
    step_low: float = 0.02,
    step_high: float = 0.05,
    accounting: str = "gradient",
    order: str = "high_first",
) -> tuple[float, float, int]:
    """The bounds and the number of steps taken; steps are counted in whole numbers, so that no float drifts."""
    max_low = math.floor((low[1] - low[0]) / step_low + 1e-9)
    max_high = math.floor((high[1] - high[0]) / step_high + 1e-9)
    i = j = 0
    while positive_share(tokens, low[0] + i * step_low, high[0] + j * step_high, accounting) < share:
        if i == max_low and j == max_high:
            break
        if (j < max_high) if order == "high_first" else (i == max_low):
            j += 1
        else:
            i += 1
    return low[0] + i * step_low, high[0] + j * step_high, i + j


def bounds(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    frozen: list[float],
    sampler: list[float],
    *,
    share: float = 0.4,
    low: tuple[float, float] = (0.6, 0.9),
    high: tuple[float, float] = (1.2, 3.0),
    step_low: float = 0.02,
    step_high: float = 0.05,
    accounting: str = "gradient",
    weighted: bool = False,
    order: str = "high_first",
    eps: float = 1e-6,
) -> tuple[float, float]:
    found = search(
        batch_tokens(paths, group_z_scores(rewards, tasks, eps), frozen, sampler, weighted),
        share=share,
        low=low,
        high=high,
        step_low=step_low,
        step_high=step_high,
        accounting=accounting,
        order=order,
    )
    return found[0], found[1]


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    sampler: list[float],
    chosen: tuple[float, float],
    *,
    eps: float = 1e-6,
) -> float:
    """`chosen`: what `bounds` returned; no gradient runs through the choice."""
    terms = []
    for path, advantage in zip(paths, group_z_scores(rewards, tasks, eps), strict=True):
        for token in path:
            ratio = math.exp(new[token] - sampler[token])
            terms.append(-min(ratio * advantage, clamp(ratio, *chosen) * advantage))
    return mean(terms)
