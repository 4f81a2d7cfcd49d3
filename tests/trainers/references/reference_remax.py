"""ReMax (arXiv:2310.10505) in plain Python floats (batch as in reference_tools).

`greedy[i]` is the reward of the greedy episode of the task of trajectory i. Each token pays for its own k1 only, not
for that of the tokens after it.
"""

from reference_tools import Rows, k1, token_mean


def advantages(
    paths: list[list[int]],
    rewards: list[float],
    greedy: list[float],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.0,
) -> Rows:
    return [
        [reward - baseline - (beta * k1(old[token], ref[token]) if beta else 0.0) for token in path]
        for path, reward, baseline in zip(paths, rewards, greedy, strict=True)
    ]


def loss(
    paths: list[list[int]],
    rewards: list[float],
    greedy: list[float],
    new: list[float],
    old: list[float],
    ref: list[float],
    *,
    beta: float = 0.0,
) -> float:
    rows = advantages(paths, rewards, greedy, old, ref, beta=beta)
    return token_mean(
        [[-a * new[token] for token, a in zip(path, row, strict=True)] for path, row in zip(paths, rows, strict=True)]
    )
