"""What a training loop asks of an algorithm, and the optimizer step that all of them share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from agentrl.errors import PolicyError
from agentrl.trainers.objective import Metrics, average_metrics
from agentrl.trainers.optimizer import MasterAdamW
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Tree


class Learner(Protocol):
    """Changes the weights of a policy after episodes."""

    def update(self, trees: Sequence[Tree], *, number: int, seed: int) -> dict[str, float]:
        """Trains on the episodes of one update.

        Args:
            trees: Groups; those without a valid leaf are passed over.
            number: Of this update, from 0; places it in the learning-rate schedule.
            seed: Of this update.

        Returns:
            Metrics.

        Raises:
            PolicyError: The gradient is not finite.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep beside the policy's weights."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        ...


def gradient_step(
    model: torch.nn.Module,
    optimizer: MasterAdamW,
    losses: Iterable[tuple[Tensor, Metrics]],
    *,
    rate: str = "optimizer.learning_rate",
) -> dict[str, float]:
    """One optimizer step on the sum of the losses of micro-batches.

    Args:
        model: Switched to training mode.
        optimizer: Of its parameters.
        losses: Computed one after the other, so that one graph exists at a time.
        rate: Name of the setting that an error advises to lower.

    Returns:
        "loss", "grad_norm" before clipping, and the average of the metrics.

    Raises:
        PolicyError: The gradient is not finite; the weights are unchanged.
    """
    model.train()
    optimizer.zero_grad()
    total = 0.0
    metrics: list[Metrics] = []
    for loss, part_metrics in losses:
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
        metrics.append(part_metrics)
    norm = optimizer.step()
    if not math.isfinite(norm):
        raise PolicyError(
            f"The gradient norm is {norm}: the update would destroy the weights, so it was not made. Lower "
            f"{rate}, or use float32."
        )
    return {"loss": total, "grad_norm": norm, **average_metrics(metrics)}


def average_steps(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """The means of the metrics of an update's optimizer steps.

    >>> average_steps([{"loss": 1.0}, {"loss": 3.0}])
    {'loss': 2.0}
    """
    return {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}


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
