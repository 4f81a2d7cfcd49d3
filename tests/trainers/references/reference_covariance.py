"""The covariance of a token (arXiv:2505.22617) in plain Python floats (batch as in reference_tools).

Cov(y_it) = (log pi(y_it) - mean log pi) (A_it - mean A), the means over all tokens of the batch. A token is named by
(path, position): copies of a shared token have advantages of their own.
"""

from reference_tools import Rows, token_mean

Position = tuple[int, int]


def covariances(paths: list[list[int]], token_advantages: Rows, frozen: list[float]) -> dict[Position, float]:
    mean_logp = token_mean([[frozen[token] for token in path] for path in paths])
    mean_advantage = token_mean(token_advantages)
    return {
        (i, t): (frozen[token] - mean_logp) * (token_advantages[i][t] - mean_advantage)
        for i, path in enumerate(paths)
        for t, token in enumerate(path)
    }


def num_selected(num_tokens: int, fraction: float) -> int:
    """At least one, however small the batch."""
    return max(int(fraction * num_tokens), 1)
