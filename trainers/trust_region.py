"""TRPO's step (arXiv:1502.05477): the natural gradient as far as a bound on the KL divergence allows, then checked.

    maximize the surrogate subject to mean KL(old || new) <= max_kl

near the old weights becomes: solve H x = g by conjugate gradients, g the surrogate's gradient and H the Hessian of the
mean KL, and go x * sqrt(2 max_kl / x^T H x), equation 14 and appendix C. A line search then shortens the step until the
true KL keeps the bound and the true surrogate is better than before. If none does, the weights stay as they were.

The theorem of the paper promises monotone improvement for a penalty nobody can afford; this algorithm promises the
bound on the KL over the states of the batch, and a better surrogate there.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from agentrl.errors import ConfigError, PolicyError
from agentrl.trainers.conjugate_gradient import conjugate_gradient
from agentrl.trainers.masking import zero_outside

Evaluate: TypeAlias = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives loss (minus the surrogate) and mean KL(old || current) of the weights as they are, in terms that add up.

Each term has a graph of its own, which is gone when the next one is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRegion:
    """A part of a recipe: how far a step may go, and how it is found. Adam and learning rate are not used then.

    The numbers are tianshou's; the paper has max_kl 0.01 and 10 iterations too.

    Raises:
        ConfigError: A number out of its range.
    """

    max_kl: float = 0.01
    """Nats per token, of whole next-token distributions."""
    cg_iterations: int = 10
    damping: float = 0.1
    """Added to the diagonal of H, also in the length of the step: directions without curvature stay short."""
    backtracks: int = 10
    """Times that a step is shortened before it is given up."""
    backtrack_factor: float = 0.8

    def __post_init__(self) -> None:
        if not (self.max_kl > 0 and self.cg_iterations >= 1 and self.damping >= 0 and self.backtracks >= 0):
            raise ConfigError(
                "A trust region needs max_kl > 0, cg_iterations >= 1, damping >= 0 and backtracks >= 0, got "
                f"{self.max_kl}, {self.cg_iterations}, {self.damping} and {self.backtracks}."
            )
        if not 0.0 < self.backtrack_factor < 1.0:
            raise ConfigError(f"backtrack_factor must be between 0 and 1, got {self.backtrack_factor}.")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What came of a step."""

    loss: float
    """Before."""
    grad_norm: float
    """Of the loss, before."""
    fraction: float
    """Of the full step that was taken; 0 if it was given up."""
    kl: float
    """Mean KL(old || new) afterwards."""
    gain: float
    """By how much the loss fell."""


def distribution_kl(old: Tensor, new: Tensor) -> Tensor:
    """KL(old || new) = sum over v of p_v (ln p_v - ln q_v), of whole distributions.

    Args:
        old: [U, V] log-probabilities; -inf is a probability of 0, which adds nothing.
        new: [U, V] likewise, with gradient.

    Returns:
        [U].
    """
    possible = old > -math.inf
    return zero_outside(old.exp() * zero_outside(old - new, possible), possible).sum(dim=-1)


def trust_region_step(parameters: Sequence[Tensor], evaluate: Evaluate, region: TrustRegion) -> StepReport:
    """Takes one step, or none: see the module.

    Every evaluation is a pass over all terms: one for the gradient, one per iteration of conjugate gradients (with a
    second derivative), one per length that is tried. A batch of one term keeps its graph between the iterations, which
    saves half of the time; of several, one exists at a time.

    Args:
        parameters: What is changed; with the old weights in place.
        evaluate: Loss and KL; twice differentiable.
        region: The bound and the search.

    Raises:
        PolicyError: The gradient is not finite; the weights are unchanged.
    """
    gradient, before, count = _gradient(parameters, evaluate)
    norm = float(gradient.norm())
    if not math.isfinite(norm):
        raise PolicyError(f"The gradient norm is {norm}: no step was made. Look for rewards or weights that exploded.")

    kept = list(_slopes(parameters, evaluate)) if count == 1 else None

    def product(vector: Tensor) -> Tensor:
        """The gradient of (gradient of the KL) . vector; at the old weights H is Fisher's matrix."""
        image = region.damping * vector
        for slope in _slopes(parameters, evaluate) if kept is None else kept:
            products = torch.autograd.grad(
                torch.dot(slope, vector), parameters, retain_graph=kept is not None, materialize_grads=True
            )
            image = image + _flat(products)
        return image

    direction = conjugate_gradient(product, -gradient, iterations=region.cg_iterations)
    curvature = float(torch.dot(direction, product(direction)))
    if curvature > 0:  # otherwise there is no direction: all advantages are 0
        full = direction * math.sqrt(2.0 * region.max_kl / curvature)
        start = [parameter.detach().clone() for parameter in parameters]
        for trial in range(region.backtracks + 1):
            fraction = region.backtrack_factor**trial
            _move(parameters, start, fraction * full)
            loss, kl = _totals(evaluate)
            if kl <= region.max_kl and loss < before:  # False for NaN
                return StepReport(before, norm, fraction, kl, before - loss)
        _move(parameters, start, None)
    return StepReport(before, norm, fraction=0.0, kl=0.0, gain=0.0)


def _gradient(parameters: Sequence[Tensor], evaluate: Evaluate) -> tuple[Tensor, float, int]:
    """Of the loss, as one vector; the loss; and how many terms it has."""
    gradient, losses = torch.zeros_like(_flat(parameters)), []
    for loss, _ in evaluate():
        gradient += _flat(torch.autograd.grad(loss, parameters, materialize_grads=True))
        losses.append(float(loss.detach()))
    return gradient, sum(losses), len(losses)


def _slopes(parameters: Sequence[Tensor], evaluate: Evaluate) -> Iterator[Tensor]:
    """The gradient of the KL of each term, as one vector that can be differentiated again."""
    for _, kl in evaluate():
        yield _flat(torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True))


@torch.no_grad()
def _totals(evaluate: Evaluate) -> tuple[float, float]:
    terms = [(float(loss), float(kl)) for loss, kl in evaluate()]
    return sum(loss for loss, _ in terms), sum(kl for _, kl in terms)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def _move(parameters: Sequence[Tensor], start: Sequence[Tensor], step: Tensor | None) -> None:
    """Sets the parameters to start + step, or to the very bits of `start`."""
    pieces = [None] * len(start) if step is None else torch.split(step, [origin.numel() for origin in start])
    for parameter, origin, piece in zip(parameters, start, pieces, strict=True):
        parameter.copy_(origin if piece is None else origin + piece.view_as(origin))
