"""DPO (arXiv:2305.18290) in plain Python floats.

`pairs` are (chosen, rejected) indices into `paths`; only action tokens are on a path. A pair with a member without
tokens is left out.
"""

import math

from reference_tools import log_sigmoid, mean


def summed_log_ratio(path: list[int], new: list[float], ref: list[float]) -> float:
    return math.fsum(new[token] for token in path) - math.fsum(ref[token] for token in path)


def loss(
    paths: list[list[int]], pairs: list[tuple[int, int]], new: list[float], ref: list[float], *, beta: float = 0.1
) -> float:
    terms = []
    for chosen, rejected in pairs:
        if paths[chosen] and paths[rejected]:
            gap = summed_log_ratio(paths[chosen], new, ref) - summed_log_ratio(paths[rejected], new, ref)
            terms.append(-log_sigmoid(beta * gap))
    return mean(terms)
