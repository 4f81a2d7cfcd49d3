"""GSPO-token (arXiv:2507.18071) in plain Python floats (`frozen` as in reference_tools).

The value of every ratio is that of its sequence, its gradient that of its token: s_it = sg(s_i) pi_t / sg(pi_t).
"""

import math

from reference_gspo import sequence_ratio
from reference_tools import Rows, broadcast, clipped, group_z_scores, sequence_mean_token_mean


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    eps: float = 1e-6,
    token_advantages: Rows | None = None,
    frozen: list[float] | None = None,
) -> float:
    """`token_advantages` take the place of the group's, one per token."""
    frozen = new if frozen is None else frozen
    rows = []
    given = broadcast(paths, group_z_scores(rewards, tasks, eps)) if token_advantages is None else token_advantages
    for path, row in zip(paths, given, strict=True):
        terms = []
        for token, advantage in zip(path, row, strict=True):
            ratio = sequence_ratio(path, frozen, old) * math.exp(new[token] - frozen[token])
            terms.append(-clipped(ratio, advantage, clip_low, clip_high))
        rows.append(terms)
    return sequence_mean_token_mean(rows)
