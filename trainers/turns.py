"""Turns as rows and columns: what tokens say, gathered into [B, K], and spread over tokens again.

Axes: B trajectories, L sampled tokens, K turns of the longest trajectory.
"""

import torch
from torch import Tensor

from agentrl.trainers.batch import PathBatch
from agentrl.trainers.masking import require_paths, zero_outside


def turn_sums(values: Tensor, batch: PathBatch) -> Tensor:
    """[B, K]: the sum over each turn's tokens, 0 for turns that a trajectory does not have.

    Args:
        values: [B, L]; anything outside the mask.
        batch: Says which turn a token belongs to.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(batch.mask, values=values)
    sums = values.new_zeros(len(values), _num_turns(batch))
    return sums.scatter_add(1, _turn(batch), zero_outside(values, batch.mask))


def turn_mask(batch: PathBatch) -> Tensor:
    """[B, K] bool: whether a trajectory has sampled a token in this turn."""
    return turn_sums(batch.mask.float(), batch) > 0


def turn_states(batch: PathBatch) -> Tensor:
    """[B, K] int64: number of the state in which each turn was taken; -1 where that is not known."""
    states = batch.states.where(batch.mask, -1)
    unknown = torch.full((len(states), _num_turns(batch)), -1, dtype=torch.int64, device=states.device)
    return unknown.scatter_reduce(1, _turn(batch), states, reduce="amax")


def at_tokens(turns: Tensor, batch: PathBatch) -> Tensor:
    """[B, L]: every token gets the value of its turn, 0 outside the mask.

    Args:
        turns: [B, K].
        batch: Says which turn a token belongs to.
    """
    return (
        zero_outside(turns.gather(1, _turn(batch)), batch.mask) if turns.numel() else turns.new_zeros(batch.mask.shape)
    )


def _turn(batch: PathBatch) -> Tensor:
    return batch.turn.where(batch.mask, 0)


def _num_turns(batch: PathBatch) -> int:
    return int(_turn(batch).max()) + 1 if batch.mask.numel() else 0
