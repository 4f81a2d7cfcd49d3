"""GPG (arXiv:2504.02546) in plain Python floats (batch as in reference_tools): alpha (R - mean), no ratio, no clip."""

from reference_tools import Rows, broadcast, group_centred, token_mean


def nonzero_rewards_alpha(rewards: list[float]) -> float:
    """Trajectories of the batch over those with a reward that is not 0, as verl has it."""
    return len(rewards) / max(sum(1 for reward in rewards if reward != 0), 1)


def contrast_alpha(rewards: list[float], tasks: list[int]) -> float:
    """Trajectories of the batch over those whose group has contrast: what makes up for gradients that are 0."""
    useful = 0
    for task in tasks:
        useful += len({reward for reward, other in zip(rewards, tasks, strict=True) if other == task}) > 1
    return len(rewards) / max(useful, 1)


def advantages(paths: list[list[int]], rewards: list[float], tasks: list[int], *, alpha: float | None = None) -> Rows:
    alpha = nonzero_rewards_alpha(rewards) if alpha is None else alpha
    return broadcast(paths, [alpha * value for value in group_centred(rewards, tasks)])


def loss(
    paths: list[list[int]],
    rewards: list[float],
    tasks: list[int],
    new: list[float],
    *,
    alpha: float | None = None,
) -> float:
    rows = advantages(paths, rewards, tasks, alpha=alpha)
    return token_mean(
        [[-a * new[token] for token, a in zip(path, row, strict=True)] for path, row in zip(paths, rows, strict=True)]
    )
