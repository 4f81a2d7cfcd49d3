"""ARPO's two advantage estimators (arXiv:2507.19849), in plain Python floats (batch as in reference_grpo).

Hard: a token on d trajectories gets the mean of their d advantages. Soft: every copy keeps its own trajectory's.
Both enter the GRPO objective; the released code sets its KL coefficient to zero.
"""

import math


def normalized_outcomes(rewards: list[float], tasks: list[int], eps: float) -> list[float]:
    scores = []
    for i in range(len(rewards)):
        group = [rewards[j] for j in range(len(rewards)) if tasks[j] == tasks[i]]
        centre = math.fsum(group) / len(group)
        spread = math.sqrt(math.fsum((r - centre) ** 2 for r in group) / max(len(group) - 1, 1))
        scores.append(0.0 if len(set(group)) == 1 else (rewards[i] - centre) / (spread + eps))
    return scores


def token_advantages(paths: list[list[int]], advantages: list[float], *, hard: bool) -> list[dict[int, float]]:
    result = []
    for path, own in zip(paths, advantages, strict=True):
        row = {}
        for token in path:
            through = [a for other, a in zip(paths, advantages, strict=True) if token in other]
            row[token] = math.fsum(through) / len(through) if hard else own
        result.append(row)
    return result


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    hard: bool,
    clip: float = 0.2,
    eps: float = 1e-6,
) -> float:
    scores = normalized_outcomes(rewards, tasks, eps)
    per_path = []
    for path, row in zip(paths, token_advantages(paths, scores, hard=hard), strict=True):
        terms = []
        for token in path:
            ratio, advantage = math.exp(new[token] - old[token]), row[token]
            blocked = (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)
            bound = 1 + clip if advantage > 0 else 1 - clip
            terms.append((bound if blocked else ratio) * advantage)
        if terms:
            per_path.append(math.fsum(terms) / len(terms))
    return -math.fsum(per_path) / len(per_path)


def released_loss(
    paths: list[list[int]], rewards: list[float], tasks: list[int], new: list[float], old: list[float]
) -> float:
    """What the released code minimizes (it is stock verl): mean over all tokens, dual clip with c = 3."""
    losses = []
    for path, advantage in zip(paths, normalized_outcomes(rewards, tasks, 1e-6), strict=True):
        for token in path:
            ratio = math.exp(new[token] - old[token])
            pg_loss = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))
            losses.append(min(pg_loss, -advantage * 3.0) if advantage < 0 else pg_loss)
    return math.fsum(losses) / len(losses)
