"""GiGPO (arXiv:2505.10978) in plain Python floats (batch as in reference_tools).

Episode part: the trajectory's reward in its group. Step part: the discounted return from a turn among all turns of the
group that began in the same state (also of one and the same trajectory); a state seen once has 0. Both parts are
centred, and divided by the standard deviation where `std` says so. Statistics are over trajectories and turns.
"""

import math

from reference_tools import Rows, clipped, group_centred, group_z_scores, k3, token_mean


def discounted_returns(turn_rewards: list[float], gamma: float) -> list[float]:
    turns = range(len(turn_rewards))
    return [math.fsum(gamma ** (k - turn) * turn_rewards[k] for k in turns if k >= turn) for turn in turns]


def advantages(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    states: list[list[str]],
    *,
    std: bool = False,
    weight: float = 1.0,
    gamma: float = 0.95,
    eps: float = 1e-6,
) -> Rows:
    episode = group_z_scores(rewards, tasks, eps) if std else group_centred(rewards, tasks)
    steps = [(i, turn) for i, given in enumerate(turn_rewards) for turn in range(len(given))]
    returns = [discounted_returns(turn_rewards[i], gamma)[turn] for i, turn in steps]
    keys = [(tasks[i], states[i][turn]) for i, turn in steps]
    scores = group_z_scores(returns, keys, eps) if std else group_centred(returns, keys)
    step = dict(zip(steps, scores, strict=True))
    return [[episode[i] + weight * step[i, turn] for turn in turns[i]] for i in range(len(paths))]


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    states: list[list[str]],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    std: bool = False,
    weight: float = 1.0,
    gamma: float = 0.95,
    clip: float = 0.2,
    beta: float = 0.01,
    eps: float = 1e-6,
) -> float:
    rows = []
    given = advantages(paths, rewards, tasks, turns, turn_rewards, states, std=std, weight=weight, gamma=gamma, eps=eps)
    for path, row in zip(paths, given, strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            objective = clipped(math.exp(new[token] - old[token]), advantage, clip, clip)
            terms.append(beta * k3(new[token], ref[token]) - objective if beta else -objective)
        rows.append(terms)
    return token_mean(rows)
