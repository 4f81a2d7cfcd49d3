"""Random batches whose trajectories have turns: their rewards, states and trees, beside what `path_cases` gives."""

import random
from dataclasses import dataclass, replace

import torch
from path_cases import Case, make_case
from torch import Tensor


@dataclass
class StepCase:
    """A case with turns; one list per path, with one entry per token (`turns`) or per turn (the others)."""

    case: Case
    roots: list[int]
    turns: list[list[int]]
    turn_rewards: list[list[float]]
    states: list[list[str]]


def make_step_case(seed: int) -> StepCase:
    """A case of `make_case` in which a trajectory has one to four turns, unless it is empty.

    Task 2 has equal returns that fall in different turns; in task 4 all turns of all trajectories have equal rewards.
    Some states occur once, some in several trajectories, some twice in one; some are not known. Padding holds garbage
    in every column.
    """
    case = make_case(seed)
    rng = random.Random(1000 + seed)
    turns = [_turns(rng, len(path)) for path in case.paths]
    numbers = [max(row, default=-1) + 1 for row in turns]
    turn_rewards = [_rewards(rng, task, number) for task, number in zip(case.tasks, numbers, strict=True)]
    rewards = [sum(given) for given in turn_rewards]
    unknown = iter(range(10**6))
    states = [[rng.choice(["a", "b", "c", f"?{next(unknown)}"]) for _ in range(number)] for number in numbers]
    roots = [rng.randint(0, 1) for _ in case.paths]
    made = StepCase(replace(case, rewards=rewards), roots, turns, turn_rewards, states)
    _fill(made, rng)
    return made


def _turns(rng: random.Random, length: int) -> list[int]:
    """The turn of each token: contiguous, from 0."""
    number = rng.randint(1, min(4, length)) if length else 0
    starts = {0, *rng.sample(range(1, length), number - 1)} if number else set()
    turn = -1
    return [turn := turn + (position in starts) for position in range(length)]


def _rewards(rng: random.Random, task: int, number: int) -> list[float]:
    """Rewards of the turns of one trajectory; eighths, so that sums are exact."""
    if task == 4:
        return [0.125] * number
    rewards = [rng.choice((0.0, 0.5, rng.randint(-8, 8) / 8)) for _ in range(number)]
    if task == 2 and rewards:
        rewards[-1] += 0.75 - sum(rewards)
    return rewards


def _fill(made: StepCase, rng: random.Random) -> None:
    """Writes the columns of turns into the batch."""
    batch = made.case.batch
    shape = batch.mask.shape
    turn = torch.tensor([[rng.randint(0, 9) for _ in range(shape[1])] for _ in range(shape[0])])
    state = turn.clone()
    rewards = made.case.garbage.clone()
    keys: dict[tuple[int, str], int] = {}
    for i, row in enumerate(made.turns):
        columns = batch.mask[i].nonzero().flatten().tolist()
        for place, (column, number) in enumerate(zip(columns, row, strict=True)):
            key = made.states[i][number]
            turn[i, column] = number
            state[i, column] = -1 if key[0] == "?" else keys.setdefault((made.case.tasks[i], key), len(keys))
            ends = place + 1 == len(row) or row[place + 1] != number
            rewards[i, column] = made.turn_rewards[i][number] if ends else 0.0
    made.case.batch = replace(
        batch,
        rewards=torch.tensor(made.case.rewards, dtype=torch.float64),
        turn=turn,
        states=state,
        turn_rewards=rewards,
        root=torch.tensor(made.roots),
    )


def rows_of(values: Tensor, case: Case) -> list[list[float]]:
    """What stands at the tokens of each path of a [B, L] tensor."""
    return [row[mask].tolist() for row, mask in zip(values, case.batch.mask, strict=True)]
