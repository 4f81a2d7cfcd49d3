"""IPO (arXiv:2310.12036) in plain Python floats (pairs as in reference_dpo)."""

from reference_tools import mean


def loss(
    paths: list[list[int]],
    pairs: list[tuple[int, int]],
    new: list[float],
    ref: list[float],
    *,
    tau: float = 0.1,
    token_mean: bool = False,
) -> float:
    """(h - 1 / (2 tau))^2; h is made of sums over tokens (the paper) or of means over tokens (TRL)."""
    terms = []
    for pair in pairs:
        if not all(paths[member] for member in pair):
            continue
        scores = []
        for member in pair:
            log_ratios = [new[token] - ref[token] for token in paths[member]]
            scores.append(mean(log_ratios) if token_mean else sum(log_ratios))
        terms.append((scores[0] - scores[1] - 1 / (2 * tau)) ** 2)
    return mean(terms)
