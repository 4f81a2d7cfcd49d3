"""Aggregation as weights: loss = sum of weights [B, L] * token losses [B, L].

The weights are computed once from the mask of the whole mini-batch (all trajectories of one optimizer step). A
micro-batch takes its rows of them and its losses simply add up, so no way of splitting can change the gradient; a
mean taken inside each micro-batch would.

A trajectory without a counted token (all its tokens masked, or a row of padding) has weight 0 and is not counted
among the trajectories, so that filling a batch up with empty rows changes nothing. verl counts likewise; TRL keeps
such rows in its averages.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.masking import require_paths


def token_mean(mask: Tensor) -> Tensor:
    """Every token counts the same: w = 1 / (all tokens). DAPO, arXiv:2503.14476, section 3.3; verl's and TRL's default.

    Args:
        mask: [B, L] bool, of the whole mini-batch.

    Returns:
        [B, L] float32, 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask)
    return mask.float() / mask.sum().clamp(min=1)


def seq_mean_token_mean(mask: Tensor) -> Tensor:
    """Every trajectory counts the same, however long: w = 1 / (N L_i). GRPO, arXiv:2402.03300, equation 3.

    N counts the trajectories with a token. A long trajectory's tokens weigh less: Dr. GRPO's point of criticism.

    Args:
        mask: [B, L] bool, of the whole mini-batch.

    Returns:
        [B, L] float32, 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.

    >>> import torch
    >>> seq_mean_token_mean(torch.tensor([[True, True], [True, False], [False, False]])).tolist()
    [[0.25, 0.25], [0.5, 0.0], [0.0, 0.0]]
    """
    require_paths(mask)
    return mask.float() / (_num_trajectories(mask) * mask.sum(dim=1, keepdim=True).clamp(min=1))


def seq_mean_token_sum(mask: Tensor) -> Tensor:
    """The policy gradient of the textbook, a sum over each trajectory: w = 1 / N. RLOO, arXiv:2402.14740.

    Args:
        mask: [B, L] bool, of the whole mini-batch.

    Returns:
        [B, L] float32, 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    require_paths(mask)
    return mask.float() / _num_trajectories(mask)


def constant(mask: Tensor, *, length: int) -> Tensor:
    """Sum over tokens divided by a constant: w = 1 / (N C). Dr. GRPO, arXiv:2503.20783, section 3.2.

    Against `token_mean` the gradient is smaller by the factor mean(L_i) / C, which Adam undoes and plain gradient
    descent does not. (verl's C is by default the padded width of the batch, so not a constant.)

    Args:
        mask: [B, L] bool, of the whole mini-batch.
        length: C, the largest number of tokens a trajectory may have.

    Returns:
        [B, L] float32, 0 outside the mask.

    Raises:
        TypeError, ValueError: Wrong dtype or shape.
    """
    return seq_mean_token_sum(mask) / length


def _num_trajectories(mask: Tensor) -> Tensor:
    """Scalar: trajectories with at least one token, 1 if there is none."""
    return mask.any(dim=1).sum().clamp(min=1)


class Aggregation(Protocol):
    """A part of a recipe: the weight of every token of a mini-batch."""

    def __call__(self, mask: Tensor) -> Tensor:
        """Weights [B, L] from the mask [B, L] of the whole mini-batch."""
        ...


@dataclass(frozen=True, slots=True)
class TokenMean(Aggregation):
    """Mean over all tokens (`token_mean`)."""

    def __call__(self, mask: Tensor) -> Tensor:
        """[B, L]."""
        return token_mean(mask)


@dataclass(frozen=True, slots=True)
class SeqMeanTokenMean(Aggregation):
    """Mean over trajectories of means over tokens (`seq_mean_token_mean`)."""

    def __call__(self, mask: Tensor) -> Tensor:
        """[B, L]."""
        return seq_mean_token_mean(mask)


@dataclass(frozen=True, slots=True)
class SeqMeanTokenSum(Aggregation):
    """Mean over trajectories of sums over tokens (`seq_mean_token_sum`)."""

    def __call__(self, mask: Tensor) -> Tensor:
        """[B, L]."""
        return seq_mean_token_sum(mask)


@dataclass(frozen=True, slots=True)
class Constant(Aggregation):
    """Sum over tokens divided by a fixed length (`constant`).

    Raises:
        ConfigError: A length below 1.
    """

    length: int
    """Token budget of a trajectory."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"Constant needs a length of at least 1 token, got {self.length}.")

    def __call__(self, mask: Tensor) -> Tensor:
        """[B, L]."""
        return constant(mask, length=self.length)
