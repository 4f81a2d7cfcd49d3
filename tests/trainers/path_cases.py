"""Random batches for the loss tests: ragged, branching, with everything that could leak through a mask.

A case holds the same data twice: as plain lists for the references (a path is the list of its token ids,
log-probabilities, entropies and values belong to ids) and as the [B, L] tensors of the implementation, float64. In the
tensors, padding stands at random columns, not only at the end, and holds infinities and NaN. What a path has beyond
its tokens (turns, states, trees) is in `step_cases`.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agentrl.trainers.batch import PathBatch

GARBAGE = (math.inf, -math.inf, math.nan, 1e30, -1e30)
EDGES = (0.8, 1.2, 1.28, 3.0)
"""Ratios at which some surrogate changes branch: the clips of PPO and DAPO, and verl's dual clip."""


@dataclass
class Case:
    paths: list[list[int]]
    rewards: list[float]
    tasks: list[int]
    truncated: list[bool]
    new: list[float]
    old: list[float]
    ref: list[float]
    sampler: list[float]
    """Log-probabilities that the engine reported; `old` are the trainer's own."""
    entropies: list[float]
    values: list[float]
    """Of a critic."""
    successes: list[bool]
    greedy: list[float]
    """Return of the greedy episode of each path's task."""
    batch: PathBatch
    garbage: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """Per-token-id values [U] in the path layout [B, L], garbage in the padding."""
        return torch.where(self.batch.mask, values[self.batch.token_index], self.garbage)

    def column(self, values: Sequence[float]) -> Tensor:
        """The same from a list."""
        return self.gather(torch.tensor(values, dtype=torch.float64))

    def moved(self, new: list[float]) -> "Case":
        """The case under another policy."""
        return replace(self, new=new)


def silent(mask: Tensor, rewards: list[float]) -> dict[str, Tensor]:
    """The columns of a batch whose environment says nothing but one reward at the end."""
    rows, columns = mask.shape
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return {
        "success": torch.tensor([reward >= 1.0 for reward in rewards]),
        "root": torch.arange(rows),
        "turn_rewards": torch.tensor(rewards, dtype=torch.float64)[:, None] * last,
        "states": torch.full((rows, columns), -1),
        "greedy_rewards": torch.full((rows,), math.nan, dtype=torch.float64),
        "reward_parts": torch.zeros(rows, 0, dtype=torch.float64),
    }


def make_batch(
    lengths: list[int],
    rewards: list[float],
    group: list[int] | None = None,
    token_index: list[list[int]] | None = None,
    truncated: list[bool] | None = None,
) -> PathBatch:
    """A right-padded float64 batch; without `token_index` no token is shared."""
    num_columns = max(lengths)
    mask = torch.arange(num_columns)[None, :] < torch.tensor(lengths)[:, None]
    if token_index is None:
        index = (mask.flatten().cumsum(0) - 1).view(mask.shape).where(mask, 0)
    else:
        index = torch.tensor([row + [0] * (num_columns - len(row)) for row in token_index])
    return PathBatch(
        token_index=index,
        mask=mask,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.tensor(group or [0] * len(lengths)),
        turn=torch.zeros_like(index),
        logprobs=torch.zeros(mask.shape, dtype=torch.float64),
        entropies=torch.zeros(mask.shape, dtype=torch.float64),
        truncated=torch.tensor(truncated or [False] * len(lengths)),
        **silent(mask, rewards),
    )


def make_case(seed: int, edges: Sequence[float] = EDGES) -> Case:
    """A batch of five tasks: branching groups, a group of one, a group of equal rewards; two trajectories are empty.

    Half of the token ratios lie beside one of the `edges`.
    """
    rng = random.Random(seed)
    paths: list[list[int]] = []
    rewards: list[float] = []
    tasks: list[int] = []
    num_ids = 0
    for task, size in enumerate((4, 1, 3, 5, 3)):
        stem = list(range(num_ids, num_ids := num_ids + rng.randint(1, 3)))
        fork = list(range(num_ids, num_ids := num_ids + rng.randint(1, 3)))
        for member in range(size):
            own = list(range(num_ids, num_ids := num_ids + rng.randint(1, 6)))
            paths.append(([], stem + own, stem + fork + own, fork + own, own)[member if task in (0, 3) else 2])
            rewards.append(0.1 if task == 2 else rng.choice((0.0, 1.0, rng.uniform(-1, 1))))
            tasks.append(task)
    rewards[tasks.index(3)], rewards[tasks.index(3) + 1] = 0.25, 0.75  # one group has contrast for certain
    order = rng.sample(range(len(paths)), len(paths))
    paths, rewards, tasks = ([column[i] for i in order] for column in (paths, rewards, tasks))
    old = [rng.uniform(-3.0, -0.05) for _ in range(num_ids)]
    ref = [value + rng.gauss(0.0, 0.3) for value in old]
    new = [value + math.log(_ratio(rng, edges)) for value in old]
    truncated = [rng.random() < 0.2 for _ in paths]
    batch, garbage = _lay_out(rng, paths, rewards, tasks, truncated)
    best = [rng.uniform(-1.0, 1.0) for _ in range(5)]
    case = Case(
        paths=paths,
        rewards=rewards,
        tasks=tasks,
        truncated=truncated,
        new=new,
        old=old,
        ref=ref,
        sampler=[value + rng.gauss(0.0, 0.5) for value in old],
        entropies=[rng.choice((0.0, rng.uniform(0.01, 2.5), rng.uniform(0.01, 2.5))) for _ in old],
        values=[rng.uniform(-1.0, 1.0) for _ in old],
        successes=[rng.random() < 0.5 for _ in paths],
        greedy=[best[task] for task in tasks],
        batch=batch,
        garbage=garbage,
    )
    case.batch = replace(
        batch,
        logprobs=case.column(case.sampler),
        entropies=case.column(case.entropies),
        success=torch.tensor(case.successes),
        greedy_rewards=torch.tensor(case.greedy, dtype=torch.float64),
    )
    return case


def _ratio(rng: random.Random, edges: Sequence[float]) -> float:
    """Half of the ratios lie just on one side of an edge, farther away than a central difference reaches."""
    if rng.random() < 0.5:
        return rng.choice(edges) * (1.0 + rng.choice((-1e-3, 1e-3)))
    return math.exp(rng.gauss(0.0, 0.6))


def aimed(case: Case, ratio: Callable[[list[float]], float], edges: Sequence[float], seed: int) -> Case:
    """The same case with two of three trajectories so that their ratio lies just beside one of the edges.

    Args:
        case: Whose trajectories end with a token of their own: that one is moved.
        ratio: Of a trajectory, rising in each of the log-ratios of its tokens.
        edges: Where a surrogate changes branch.
        seed: Of the choices.
    """
    rng, new = random.Random(seed), list(case.new)
    for path in case.paths:
        if not path or rng.random() < 1 / 3:
            continue
        given, target = new[path[-1]], rng.choice(edges) * (1.0 + rng.choice((-2e-5, 2e-5)))
        low, high = -15.0, 15.0
        for _ in range(80):
            middle = (low + high) / 2
            new[path[-1]] = case.old[path[-1]] + middle
            reached = ratio([new[token] - case.old[token] for token in path])
            low, high = (middle, high) if reached < target else (low, middle)
        if abs(reached - target) > 1e-6:  # the other tokens alone are too much
            new[path[-1]] = given
    return case.moved(new)


def _lay_out(
    rng: random.Random, paths: list[list[int]], rewards: list[float], tasks: list[int], truncated: list[bool]
) -> tuple[PathBatch, Tensor]:
    num_columns = max(len(path) for path in paths) + 2
    index = torch.zeros(len(paths), num_columns, dtype=torch.int64)
    mask = torch.zeros(len(paths), num_columns, dtype=torch.bool)
    for row, path in enumerate(paths):
        columns = sorted(rng.sample(range(num_columns), len(path)))
        index[row, columns] = torch.tensor(path, dtype=torch.int64)
        mask[row, columns] = True
    garbage = torch.tensor([[rng.choice(GARBAGE) for _ in range(num_columns)] for _ in paths], dtype=torch.float64)
    batch = PathBatch(
        token_index=index,
        mask=mask,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group=torch.tensor(tasks),
        turn=torch.zeros_like(index),
        logprobs=torch.zeros(mask.shape, dtype=torch.float64),
        entropies=torch.zeros(mask.shape, dtype=torch.float64),
        truncated=torch.tensor(truncated),
        **silent(mask, rewards),
    )
    return batch, garbage
