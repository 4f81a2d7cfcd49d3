"""One update: from the trees of a rollout to new weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agentrl.errors import PolicyError
from agentrl.seeding import generator
from agentrl.trainers.batch import PathBatch, lay_out_paths
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.objective import (
    Metrics,
    average_metrics,
    compute_advantages,
    compute_weights,
    policy_loss,
)
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.recipe import Recipe
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Tree


@dataclass(frozen=True, slots=True)
class _Part:
    """The trees of one micro-batch, with their rows of everything that was computed for the whole batch."""

    trees: list[Tree]
    batch: PathBatch
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    weights: Tensor


class Updater:
    """Computes losses from trees and steps the optimizer.

    Args:
        recipe: The algorithm.
        settings: Optimizer, mini-batches, memory bound.
        scorer: Forward pass of the policy that is trained.
        temperature: At which the trees were sampled.
        total_updates: Length of the schedule.
        reference: Log-probabilities [U] of trees under the frozen reference model; needed if the recipe says so.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: OptimizerSettings,
        scorer: TokenScorer,
        *,
        temperature: float,
        total_updates: int,
        reference: Callable[[list[Tree]], Tensor] | None = None,
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._scorer = scorer
        self._temperature = temperature
        self._total_updates = total_updates
        self._reference = reference
        self.parameters = [p for p in scorer.model.parameters() if p.requires_grad]
        self.optimizer = MasterAdamW(self.parameters, settings)

    def update(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Trains on the episodes of one rollout.

        Args:
            trees: Groups; those without a valid leaf are passed over.
            number: Of this update, from 0; places it in the learning-rate schedule.
            seed: Shuffles groups into mini-batches.

        Returns:
            Metrics of the update: the loss, the gradient norm before clipping, and those of the recipe.

        Raises:
            PolicyError: The gradient is not finite.
        """
        groups = [tree for tree in trees if tree.valid_leaves]
        factor = schedule(self._settings, number, self._total_updates)
        self.optimizer.learning_rate = self._settings.learning_rate * factor
        steps: list[dict[str, float]] = []
        batch, reference = self._prepare(groups)
        advantages = compute_advantages(self._recipe, batch, old_logprobs=batch.logprobs, ref_logprobs=reference)
        for epoch in range(self._settings.epochs):
            order = generator(seed, "mini-batches", epoch).permutation(len(groups))
            for chosen in np.array_split(order, min(self._settings.mini_batches, len(groups))):
                parts = self._parts(groups, sorted(chosen.tolist()), batch, reference, advantages)
                steps.append(self._step(parts))
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return {**means, "learning_rate": self.optimizer.learning_rate}

    def _prepare(self, groups: list[Tree]) -> tuple[PathBatch, Tensor | None]:
        """All trajectories as rows on the model's device, and the reference's opinion of them."""
        device = self.parameters[0].device
        batch = lay_out_paths(groups).to(device)
        if not self._recipe.needs_reference:
            return batch, None
        assert self._reference is not None, "the trainer loads a reference whenever the recipe needs one"
        with torch.no_grad():
            scores = torch.cat([self._reference([tree]) for tree in groups])  # unique tokens are numbered tree by tree
        return batch, scores[batch.token_index]

    def _split(self, groups: Sequence[Tree]) -> list[list[int]]:
        return self._scorer.split(groups, self._settings.max_tokens_per_micro_batch)

    def _parts(
        self, groups: list[Tree], chosen: list[int], batch: PathBatch, reference: Tensor | None, advantages: Tensor
    ) -> Iterator[_Part]:
        """Cuts a mini-batch into micro-batches of whole trees; weights are those of the whole mini-batch."""
        rows = torch.isin(batch.group, torch.tensor(chosen, device=batch.group.device))
        weights = torch.zeros_like(batch.logprobs)
        weights[rows] = compute_weights(self._recipe, batch.rows(rows))
        for part in self._split([groups[i] for i in chosen]):
            members = [chosen[i] for i in part]
            row = torch.cat([(batch.group == i).nonzero().flatten() for i in members])
            trees = [groups[i] for i in members]
            yield _Part(
                trees=trees,
                batch=lay_out_paths(trees).to(batch.mask.device),
                old_logprobs=batch.logprobs[row],
                ref_logprobs=None if reference is None else reference[row],
                advantages=advantages[row],
                weights=weights[row],
            )

    def _step(self, parts: Iterator[_Part]) -> dict[str, float]:
        self._scorer.model.train()
        self.optimizer.zero_grad()
        losses: list[float] = []
        metrics: list[Metrics] = []
        for part in parts:
            loss, part_metrics = self._loss(part)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            metrics.append(part_metrics)
        norm = self.optimizer.step()
        if not math.isfinite(norm):
            raise PolicyError(
                f"The gradient norm is {norm}: the update would destroy the weights, so it was not made. Lower "
                "optimizer.learning_rate, or use float32."
            )
        return {"loss": sum(losses), "grad_norm": norm, **average_metrics(metrics)}

    def _loss(self, part: _Part) -> tuple[Tensor, Metrics]:
        scores = self._scorer.score(part.trees, temperature=self._temperature)
        width = part.batch.mask.shape[1]  # of this micro-batch; the whole batch may be wider
        logprobs = scores.logprobs[part.batch.token_index]
        loss, metrics = policy_loss(
            self._recipe,
            part.batch,
            logprobs,
            old_logprobs=part.old_logprobs[:, :width],
            advantages=part.advantages[:, :width],
            weights=part.weights[:, :width],
            ref_logprobs=None if part.ref_logprobs is None else part.ref_logprobs[:, :width],
        )
        drift = (logprobs.detach() - part.old_logprobs[:, :width]).abs().masked_fill(~part.batch.mask, 0.0)
        return loss, {**metrics, "logprob_drift": drift.sum() / part.batch.mask.sum().clamp(min=1)}


def schedule(settings: OptimizerSettings, number: int, total: int) -> float:
    """Factor of the learning rate at update `number` of `total`: linear warm-up, then constant, linear or cosine.

    >>> [round(schedule(OptimizerSettings(warmup_updates=2, schedule="linear"), n, 6), 2) for n in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if number < settings.warmup_updates:
        return (number + 1) / settings.warmup_updates
    progress = (number - settings.warmup_updates) / max(1, total - settings.warmup_updates)
    if settings.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1.0
