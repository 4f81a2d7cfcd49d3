"""SAPO (arXiv:2511.20347) in plain Python floats (batch as in reference_tools)."""

import math

from reference_tools import group_z_scores, sequence_mean_token_mean, sigmoid


def gate(ratio: float, temperature: float) -> float:
    return sigmoid(temperature * (ratio - 1)) * 4 / temperature


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    old: list[float],
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    eps: float = 1e-6,
) -> float:
    rows = []
    for path, advantage in zip(paths, group_z_scores(rewards, tasks, eps), strict=True):
        temperature = tau_pos if advantage > 0 else tau_neg
        rows.append([-gate(math.exp(new[token] - old[token]), temperature) * advantage for token in path])
    return sequence_mean_token_mean(rows)
