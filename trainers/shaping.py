"""Reward terms and group filters that a recipe adds around the environment's reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers.batch import PathBatch


def overlong_penalty(lengths: Tensor, *, max_length: int, cache: int) -> Tensor:
    """DAPO's soft overlong punishment, arXiv:2503.14476, equation 13.

    0 up to max_length - cache, then falling linearly as (max_length - cache - length) / cache, and -1 above max_length.

    The lengths are those of *sampled* tokens: a long search result is not the agent's fault. (verl counts tool
    tokens too and has no floor at -1.)

    Args:
        lengths: [B] int64.
        max_length: Tokens from which the penalty is -1.
        cache: Width of the slope in tokens.

    Returns:
        [B] float32 in [-1, 0].

    Raises:
        ValueError: Wrong dtype or shape.

    >>> overlong_penalty(torch.tensor([16384, 18432, 20481]), max_length=20480, cache=4096).tolist()
    [0.0, -0.5, -1.0]
    """
    if lengths.dtype != torch.int64 or lengths.ndim != 1:
        raise ValueError(f"lengths must be int64 [B], got {lengths.dtype} {list(lengths.shape)}.")
    return ((max_length - cache - lengths) / cache).clamp(-1.0, 0.0)


class RewardShaping(Protocol):
    """A part of a recipe: something added to the reward of each trajectory before advantages are formed."""

    def __call__(self, batch: PathBatch) -> Tensor:
        """[B]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongPenalty(RewardShaping):
    """DAPO's soft penalty on the number of sampled tokens (`overlong_penalty`).

    Raises:
        ConfigError: A cache that is not between 1 and max_length.
    """

    max_length: int = 20480
    cache: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.cache <= self.max_length:
            raise ConfigError(f"cache must be between 1 and max_length={self.max_length}, got {self.cache}.")

    def __call__(self, batch: PathBatch) -> Tensor:
        """[B] from the lengths."""
        return overlong_penalty(batch.lengths, max_length=self.max_length, cache=self.cache)


class GroupFilter(Protocol):
    """A part of a recipe: which groups are worth an update; more are sampled until the batch is full."""

    @property
    def max_rounds(self) -> int:
        """Rounds of sampling one update may take; after the last it uses the groups it has."""
        ...

    def __call__(self, rewards: Sequence[float]) -> bool:
        """Whether to keep a group with these rewards of the environment, one per valid trajectory."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DropConstantRewards(GroupFilter):
    """DAPO's dynamic sampling, arXiv:2503.14476, equation 11: a group of equal rewards has no gradient, so drop it.

    For rewards of 0 and 1 this is the paper's 0 < number correct < G. It looks at the environment's rewards, before
    shaping: a length penalty must not make an all-wrong group look informative.

    Raises:
        ConfigError: `max_rounds` below 1.
    """

    max_rounds: int = 10
    """The paper samples until the batch is full; without a bound, a policy that solves all or nothing never returns."""

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ConfigError(f"max_rounds must be at least 1, got {self.max_rounds}.")

    def __call__(self, rewards: Sequence[float]) -> bool:
        """Whether two rewards differ; False for an empty group."""
        return len(set(rewards)) > 1
