"""The episodes of an update on their way to optimizer steps: mini-batches of whole groups, micro-batches of trees."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentrl.seeding import generator
from agentrl.trainers.batch import PathBatch, lay_out_paths
from agentrl.trainers.objective import compute_weights
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What was computed for all trajectories of a batch before its first optimizer step; every tensor is [B, L]."""

    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    values: Tensor | None
    """What the critic expected; None without one."""
    value_targets: Tensor | None
    """What it should have expected."""

    def cut(self, rows: Tensor, width: int) -> "Columns":
        """Some rows, and the first columns."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {name: None if c is None else c[rows, :width] for name, c in columns.items()}
        return Columns(**cut)


@dataclass(frozen=True, slots=True)
class Part:
    """A micro-batch: whole trees, and their share of what was computed for batch and mini-batch."""

    trees: list[Tree]
    batch: PathBatch
    columns: Columns
    weights: Tensor
    """[B, L]"""
    rows: Tensor
    """[B] int64: which trajectories of the mini-batch these are."""


@dataclass(frozen=True, slots=True)
class Experience:
    """The episodes of an update, laid out, with what is known of all of them before the first step."""

    groups: list[Tree]
    batch: PathBatch
    columns: Columns

    def parts(
        self, chosen: list[int], recipe: Recipe, split: Callable[[Sequence[Tree]], list[list[int]]]
    ) -> list[Part]:
        """Cuts a mini-batch into micro-batches of whole trees; weights are those of the whole mini-batch.

        Args:
            chosen: Numbers of its groups.
            recipe: Says how much each token weighs.
            split: Which trees go through a model together.
        """
        group = self.batch.group
        members = torch.isin(group, torch.tensor(chosen, device=group.device)).nonzero().flatten()
        old = self.columns.old_logprobs[members]
        weights = compute_weights(recipe, self.batch.rows(members), old_logprobs=old)
        parts = []
        for part in split([self.groups[i] for i in chosen]):
            numbers = [chosen[i] for i in part]
            rows = torch.cat([(group[members] == i).nonzero().flatten() for i in numbers])
            trees = [self.groups[i] for i in numbers]
            laid_out = lay_out_paths(trees).to(group.device)
            width = laid_out.mask.shape[1]  # of this micro-batch; the whole batch may be wider
            parts.append(Part(trees, laid_out, self.columns.cut(members[rows], width), weights[rows, :width], rows))
        return parts


def mini_batches(num_groups: int, settings: OptimizerSettings, seed: int) -> Iterator[list[int]]:
    """The groups of every optimizer step of an update: each epoch is a shuffle of its own, cut into equal parts.

    >>> [len(chosen) for chosen in mini_batches(5, OptimizerSettings(epochs=2, mini_batches=2), seed=0)]
    [3, 2, 3, 2]
    """
    for epoch in range(settings.epochs):
        order = generator(seed, "mini-batches", epoch).permutation(num_groups)
        for chosen in np.array_split(order, min(settings.mini_batches, num_groups)):
            yield sorted(chosen.tolist())
