"""PPO (arXiv:1707.06347) with GAE (arXiv:1506.02438), in plain Python floats.

A path holds action tokens only, so that the token after the last one before a tool call is the first one after it.
The reward of a turn sits on the last token of that turn; every token pays beta * k1 (old against ref). After the last
token the value is 0. `values` are those of the critic before the update, one per token id.
"""

import math

from reference_tools import Rows, clamp, clipped, k1, token_mean, whiten


def token_rewards(
    path: list[int], turns: list[int], turn_rewards: list[float], old: list[float], ref: list[float], beta: float
) -> list[float]:
    result = [-beta * k1(old[token], ref[token]) if beta else 0.0 for token in path]
    for turn, reward in enumerate(turn_rewards):
        if path:
            result[max(t for t in range(len(path)) if turns[t] == turn)] += reward
    return result


def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum that defines GAE, not its recursion: A_t = sum_l (gamma lam)^l delta_{t+l}."""
    following = [*values, 0.0][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def raw_advantages(
    paths: list[list[int]],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    values: list[float],
    old: list[float],
    ref: list[float],
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
    beta: float = 0.0,
) -> Rows:
    rows = []
    for path, where, given in zip(paths, turns, turn_rewards, strict=True):
        rewards = token_rewards(path, where, given, old, ref, beta)
        rows.append(gae(rewards, [values[token] for token in path], gamma, lam))
    return rows


def returns(paths: list[list[int]], raw: Rows, values: list[float]) -> Rows:
    """A + V of the advantages before whitening: what the critic is fitted to."""
    return [
        [a + values[token] for token, a in zip(path, row, strict=True)] for path, row in zip(paths, raw, strict=True)
    ]


def advantages(
    paths: list[list[int]],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    values: list[float],
    old: list[float],
    ref: list[float],
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
    beta: float = 0.0,
) -> Rows:
    return whiten(raw_advantages(paths, turns, turn_rewards, values, old, ref, gamma=gamma, lam=lam, beta=beta))


def policy_loss(
    paths: list[list[int]],
    token_advantages: Rows,
    new: list[float],
    old: list[float],
    *,
    clip: float = 0.2,
    dual_clip: float = math.inf,
) -> float:
    """For negative advantages no token loses more than dual_clip * |A| (arXiv:1912.09729); infinite in PPO itself."""
    rows = []
    for path, row in zip(paths, token_advantages, strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            objective = clipped(math.exp(new[token] - old[token]), advantage, clip, clip)
            terms.append(-max(objective, dual_clip * advantage) if advantage < 0 else -objective)
        rows.append(terms)
    return token_mean(rows)


def loss(
    paths: list[list[int]],
    turns: list[list[int]],
    turn_rewards: list[list[float]],
    values: list[float],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    gamma: float = 0.99,
    lam: float = 0.95,
    beta: float = 0.0,
    clip: float = 0.2,
    dual_clip: float = math.inf,
) -> float:
    rows = advantages(paths, turns, turn_rewards, values, old, ref, gamma=gamma, lam=lam, beta=beta)
    return policy_loss(paths, rows, new, old, clip=clip, dual_clip=dual_clip)


def value_loss(
    paths: list[list[int]], targets: Rows, new_values: list[float], values: list[float], *, clip: float = 0.5
) -> float:
    """`targets` are the returns; the new value is believed only within clip of the one it was computed from."""
    rows = []
    for path, row in zip(paths, targets, strict=True):
        terms = []
        for token, target in zip(path, row, strict=True):
            near = clamp(new_values[token], values[token] - clip, values[token] + clip)
            terms.append(max((new_values[token] - target) ** 2, (near - target) ** 2) / 2)
        rows.append(terms)
    return token_mean(rows)
