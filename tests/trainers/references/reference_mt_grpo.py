"""MT-GRPO (arXiv:2505.11821) in plain Python floats (batch as in reference_tools).

The first turn's reward and the rest of the trajectory's reward are normalised apart in the group. Tokens before the
first tool result (turn 0) get A_outcome + weight * A_turn, later ones A_outcome.
"""

import math

from reference_tools import Rows, clipped, group_z_scores, k3, token_mean


def advantages(
    rewards: list[float],
    tasks: list[int],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    *,
    weight: float = 1.0,
    eps: float = 1e-6,
) -> Rows:
    first = [given[0] if given else 0.0 for given in turn_rewards]
    rest = [reward - turn for reward, turn in zip(rewards, first, strict=True)]
    outcome, turn = group_z_scores(rest, tasks, eps), group_z_scores(first, tasks, eps)
    return [
        [outcome[i] + (weight * turn[i] if index == 0 else 0.0) for index in where] for i, where in enumerate(turns)
    ]


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    weight: float = 1.0,
    clip: float = 0.2,
    beta: float = 0.04,
    eps: float = 1e-6,
) -> float:
    rows = []
    given = advantages(rewards, tasks, turns, turn_rewards, weight=weight, eps=eps)
    for path, row in zip(paths, given, strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            objective = clipped(math.exp(new[token] - old[token]), advantage, clip, clip)
            terms.append(beta * k3(new[token], ref[token]) - objective if beta else -objective)
        rows.append(terms)
    return token_mean(rows)
