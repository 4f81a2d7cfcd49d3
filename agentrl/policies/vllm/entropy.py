"""The entropy of a distribution of which only the most probable tokens are known."""

import math
from collections.abc import Iterable, Sequence

NO_LOGPROB = -9000.0
"""What is not above this is no log-probability: over HTTP vLLM writes -9999 for NaN and for -inf."""


def most_probable(logprobs: Iterable[float], num_top: int) -> list[float]:
    """The `num_top` largest log-probabilities, best first; fewer if the distribution has fewer tokens.

    vLLM reports the sampled token together with the most probable ones. Where it is none of them it is one entry too
    many, which falls out here, so that `num_top` + 1 have to be asked for.

    Example:
        >>> most_probable([-5.0, -0.1, -2.5, float("-inf")], num_top=2)
        [-0.1, -2.5]

    Args:
        logprobs: One for each token that was reported, each token once.
        num_top: How many are wanted.
    """
    return sorted((logprob for logprob in logprobs if logprob > NO_LOGPROB), reverse=True)[:num_top]


def entropy_from_top(logprobs: Sequence[float], vocab_size: int) -> float:
    """The least entropy that a distribution with these most probable tokens can have, in nats.

    With k known probabilities p_i and the rest r = 1 - sum_i p_i in one bucket,

        H >= -sum_i p_i log p_i - r log r,

    because splitting the bucket can only add to it. The estimate is biased low, by at most `entropy_gap`; it is exact
    where r is 0, which includes k = V. With k = 20 and a model that is sure of itself r is far below 0.01, and the bias
    with it; near the uniform distribution it is at its largest.

    Example:
        >>> round(entropy_from_top([math.log(0.5), math.log(0.25)], vocab_size=4), 4)  # 0.5, 0.25, and 0.25 in a bucket
        1.0397

    Args:
        logprobs: Of the most probable tokens.
        vocab_size: V.
    """
    known = -sum(logprob * math.exp(logprob) for logprob in logprobs)
    rest = _rest(logprobs, vocab_size)
    return max(0.0, known - (rest * math.log(rest) if rest else 0.0))


def entropy_gap(logprobs: Sequence[float], vocab_size: int) -> float:
    """How far `entropy_from_top` can be below the true entropy: r log(V - k), reached if the rest is spread evenly.

    Args:
        logprobs: Of the most probable tokens.
        vocab_size: V.
    """
    rest = _rest(logprobs, vocab_size)
    return rest * math.log(vocab_size - len(logprobs)) if rest else 0.0


def _rest(logprobs: Sequence[float], vocab_size: int) -> float:
    """The probability of all other tokens; rounding may have made the sum a little more than 1."""
    if len(logprobs) >= vocab_size:
        return 0.0
    return max(0.0, 1.0 - math.fsum(math.exp(logprob) for logprob in logprobs))
