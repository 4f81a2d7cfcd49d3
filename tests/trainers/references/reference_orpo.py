"""ORPO (arXiv:2403.07691) in plain Python floats (pairs as in reference_dpo); no reference model.

P is the geometric mean of the token probabilities. The likelihood term covers the action tokens of the chosen member
only; the authors' code takes its prompt in, too.
"""

import math

from reference_tools import log_sigmoid, mean


def log_odds(mean_logp: float) -> float:
    """log(P / (1 - P)); -expm1 is 1 - P without cancellation."""
    return mean_logp - math.log(-math.expm1(mean_logp))


def loss(paths: list[list[int]], pairs: list[tuple[int, int]], new: list[float], *, weight: float = 0.1) -> float:
    terms = []
    for chosen, rejected in pairs:
        if paths[chosen] and paths[rejected]:
            good, bad = (mean([new[token] for token in paths[member]]) for member in (chosen, rejected))
            terms.append(-good - weight * log_sigmoid(log_odds(good) - log_odds(bad)))
    return mean(terms)
