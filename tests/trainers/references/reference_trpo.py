"""TRPO (arXiv:1502.05477), in plain Python floats (batch as in reference_tools).

Maximise the mean of r * A subject to mean KL(old || new) <= delta. The advantages are those of GAE (reference_ppo) or
of a group; the KL runs over whole next-token distributions, given as log-probabilities [token id][vocabulary].
"""

import math

from reference_tools import Rows, token_mean

Matrix = list[list[float]]


def loss(paths: list[list[int]], token_advantages: Rows, new: list[float], old: list[float]) -> float:
    """Minus the surrogate; neither clip nor KL term."""
    return token_mean(
        [
            [-math.exp(new[token] - old[token]) * a for token, a in zip(path, row, strict=True)]
            for path, row in zip(paths, token_advantages, strict=True)
        ]
    )


def token_kl(old: list[float], new: list[float]) -> float:
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(old, new, strict=True) if p > -math.inf)


def mean_kl(paths: list[list[int]], old: Matrix, new: Matrix) -> float:
    return token_mean([[token_kl(old[token], new[token]) for token in path] for path in paths])


def solve(matrix: Matrix, right: list[float]) -> list[float]:
    """Gaussian elimination with partial pivoting."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for below in range(column + 1, size):
            factor = rows[below][column] / rows[column][column]
            rows[below] = [b - factor * a for a, b in zip(rows[column], rows[below], strict=True)]
    solution = [0.0] * size
    for r in reversed(range(size)):
        known = math.fsum(rows[r][c] * solution[c] for c in range(r + 1, size))
        solution[r] = (rows[r][size] - known) / rows[r][r]
    return solution


def natural_step(hessian: Matrix, gradient: list[float], *, delta: float = 0.01, damping: float = 0.0) -> list[float]:
    """x sqrt(2 delta / x^T H x) with H x = g: the step of the quadratic model that uses the KL budget up.

    `gradient` is that of the surrogate (to be maximised); damping is added to the diagonal of H in both places.
    """
    size = len(gradient)
    damped = [[hessian[i][j] + (damping if i == j else 0.0) for j in range(size)] for i in range(size)]
    x = solve(damped, gradient)
    curvature = math.fsum(x[i] * damped[i][j] * x[j] for i in range(size) for j in range(size))
    scale = math.sqrt(2 * delta / curvature)
    return [scale * value for value in x]
