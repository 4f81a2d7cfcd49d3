"""A recipe beside its reference, and how far the two are apart on random batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from path_cases import Case, make_case
from torch import Tensor

from agentrl.trainers import Recipe, compute_advantages, compute_weights, policy_loss
from agentrl.trainers.objective import surrogate_inputs

STEP = 1e-6
TOLERANCE = 1e-6
SEEDS = range(6)


def columns_of(recipe: Recipe, case: Case) -> dict[str, Tensor | None]:
    """What a recipe wants to know before its advantages, garbage outside the mask."""
    reference = case.column(case.ref) if recipe.needs_reference else None
    values = case.column(case.values) if recipe.needs_critic else None
    return {"old_logprobs": case.column(case.old), "ref_logprobs": reference, "values": values}


def advantages_of(recipe: Recipe, case: Case) -> Tensor:
    """[B, L]."""
    return compute_advantages(recipe, case.batch, **columns_of(recipe, case))


def fitted(recipe: Recipe, case: Case, *, seed: int = 0) -> Recipe:
    """The recipe of one optimizer step: its surrogate fitted to the whole batch, as in an update."""
    if not recipe.surrogate.needs_fit:
        return recipe
    inputs = surrogate_inputs(
        recipe,
        case.batch,
        case.column(case.new),
        old_logprobs=case.column(case.old),
        advantages=advantages_of(recipe, case),
        seed=seed,
    )
    return replace(recipe, surrogate=recipe.surrogate.fit(inputs))


def loss_and_gradients(recipe: Recipe, case: Case) -> tuple[float, Tensor, Tensor]:
    """Loss, its gradient by token id [U], and its gradient by position [B, L]."""
    ids = torch.tensor(case.new, dtype=torch.float64, requires_grad=True)
    logprobs = case.gather(ids)
    logprobs.retain_grad()
    old = case.column(case.old)
    loss, _ = policy_loss(
        fitted(recipe, case),
        case.batch,
        logprobs,
        old_logprobs=old,
        ref_logprobs=case.column(case.ref) if recipe.needs_reference else None,
        advantages=advantages_of(recipe, case),
        weights=compute_weights(recipe, case.batch, old_logprobs=old),
    )
    loss.backward()
    assert ids.grad is not None
    assert logprobs.grad is not None
    return float(loss.detach()), ids.grad, logprobs.grad


Loss = Callable[[list[float]], float]


@dataclass(frozen=True)
class Row:
    """A recipe and its reference."""

    name: str
    recipe: Recipe
    reference: Callable[[Case], Loss]
    """The loss as a function of the log-probabilities; stop-gradients and selections stay those of the case."""
    wrong: Recipe
    """Slightly another recipe: the reference has to see the difference."""
    cases: Callable[[int], Case] = make_case
    """From a seed."""


class Deviation(NamedTuple):
    """How far an implementation is from its reference."""

    value: float
    gradient: float


def slopes(loss: Loss, point: list[float]) -> list[float]:
    """Central differences."""
    result = []
    for token in range(len(point)):
        up, down = list(point), list(point)
        up[token] += STEP
        down[token] -= STEP
        result.append((loss(up) - loss(down)) / (2 * STEP))
    return result


def apart(value: float, gradient: Tensor, loss: Loss, point: list[float]) -> Deviation:
    """How far a value and a gradient are from those of a plain function; the gradient's is the largest of any token."""
    expected = torch.tensor(slopes(loss, point), dtype=torch.float64)
    return Deviation(abs(value - loss(point)), float((gradient - expected).abs().max()))


def deviation(row: Row, seed: int) -> Deviation:
    """Of one case."""
    case = row.cases(seed)
    value, by_id, _ = loss_and_gradients(row.recipe, case)
    return apart(value, by_id, row.reference(case), case.new)


def assert_agrees(row: Row, seed: int) -> None:
    """Value and gradient are the reference's; what lies outside the mask has no gradient at all."""
    case = row.cases(seed)
    value, by_id, by_position = loss_and_gradients(row.recipe, case)
    assert max(apart(value, by_id, row.reference(case), case.new)) < TOLERANCE
    mask = case.batch.mask
    assert not torch.isfinite(case.garbage[~mask]).all()
    assert (by_position[~mask] == 0).all()
    assert torch.isfinite(by_position).all()


def assert_has_teeth(row: Row) -> None:
    """Negative control: there is a gradient, and the reference tells a recipe from one that is slightly off."""
    found = []
    for case in map(row.cases, SEEDS):
        value, by_id, _ = loss_and_gradients(row.wrong, case)
        assert by_id.any()
        found.append(max(apart(value, by_id, row.reference(case), case.new)))
    assert max(found) > 100 * TOLERANCE
