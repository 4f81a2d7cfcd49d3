"""AEPO (arXiv:2510.14545) in plain Python floats (`frozen` as in reference_tools).

GRPO's advantage is scaled by the entropy of the token; a positive token above the clip keeps a gradient, that of
(1 + high) A log pi. Which side of a clip a token lies on is decided by `frozen`.
"""

import math

from reference_tools import Rows, flat, group_z_scores, sigmoid, token_mean, z_scores


def advantages(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    entropy: list[float],
    *,
    weight: float = 0.2,
    eps: float = 1e-6,
    entropy_eps: float = 1e-8,
) -> Rows:
    """A (1 + weight z), z over all tokens of the batch; the factor never changes the sign."""
    z = z_scores(flat([[entropy[token] for token in path] for path in paths]), entropy_eps)
    rows, position = [], 0
    for path, advantage in zip(paths, group_z_scores(rewards, tasks, eps), strict=True):
        rows.append([advantage * max(0.0, 1 + weight * value) for value in z[position : position + len(path)]])
        position += len(path)
    return rows


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    entropy: list[float],
    new: list[float],
    old: list[float],
    *,
    weight: float = 0.2,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = math.inf,
    eps: float = 1e-6,
    frozen: list[float] | None = None,
) -> float:
    """The released code keeps verl's dual clip of 3; the paper has none."""
    frozen = new if frozen is None else frozen
    rows = []
    for path, row in zip(paths, advantages(paths, rewards, tasks, entropy, weight=weight, eps=eps), strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            ratio = math.exp(frozen[token] - old[token])
            moving = math.exp(new[token] - frozen[token])  # 1, with the gradient of log pi
            if advantage > 0 and ratio > 1 + clip_high:
                factor = (1 + clip_high) * moving
            elif advantage < 0 and ratio < 1 - clip_low:
                factor = 1 - clip_low
            elif advantage < 0 and ratio > dual_clip:
                factor = dual_clip
            else:
                factor = ratio * moving
            terms.append(-factor * advantage)
        rows.append(terms)
    return token_mean(rows)


def global_samples(budget: int, root_entropy: float, tool_entropy: float, *, beta: float = 0.5) -> int:
    """How many of the trajectories start at the prompt, as the released code rounds it."""
    return min(max(int(budget * sigmoid(beta * (root_entropy - tool_entropy))) + 1, 1), budget)


def branch_probability(change: float, consecutive: int, *, weight: float = 0.2, penalty: float = 0.05) -> float:
    """P(penalised (u + weight change) >= 0.5) for u uniform on [0, 1]."""
    factor = max(0.0, 1 - penalty * consecutive)
    return min(max(1 - 0.5 / factor + weight * change, 0.0), 1.0) if factor else 0.0
