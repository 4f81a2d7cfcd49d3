"""GRPO with process supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.3), in plain Python floats.

The rewards of all steps of all trajectories of a group are normalised together; a token's advantage is the sum of the
normalised rewards of the steps that end at or after it. A step is a turn. The objective is GRPO's.
"""

import math

from reference_tools import Rows, clipped, k3, members, sequence_mean_token_mean, z_scores


def advantages(
    paths: list[list[int]],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    tasks: list[int],
    *,
    eps: float = 1e-6,
) -> Rows:
    normalised: list[list[float]] = [[] for _ in paths]
    for group in members(tasks):
        owners = [i for i in group for _ in turn_rewards[i]]
        pooled = [reward for i in group for reward in turn_rewards[i]]
        for owner, score in zip(owners, z_scores(pooled, eps), strict=True):
            normalised[owner].append(score)
    return [[math.fsum(scores[turn:]) for turn in where] for scores, where in zip(normalised, turns, strict=True)]


def loss(
    paths: list[list[int]],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    tasks: list[int],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    clip: float = 0.2,
    beta: float = 0.04,
    eps: float = 1e-6,
) -> float:
    rows = []
    for path, row in zip(paths, advantages(paths, turns, turn_rewards, tasks, eps=eps), strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            objective = clipped(math.exp(new[token] - old[token]), advantage, clip, clip)
            terms.append(beta * k3(new[token], ref[token]) - objective if beta else -objective)
        rows.append(terms)
    return sequence_mean_token_mean(rows)
