"""Every recipe against a plain-Python reference written from its paper: values and gradients on random batches."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import reference_arpo
import reference_dapo
import reference_dr_grpo
import reference_grpo
import torch
from path_cases import EDGES, Case, make_case

from agentrl.trainers import RECIPES, Clip, Constant, OverlongPenalty, Recipe, TokenMean
from agentrl.trainers.objective import compute_advantages, compute_weights, policy_loss

TOLERANCE = 1e-6
SEEDS = range(6)
STEP = 1e-6

Reference = Callable[[Case, list[float]], float]

# Lengths of the cases are 0 to 12, so that all three branches of the overlong penalty occur.
DAPO = replace(RECIPES["dapo"], shaping=(OverlongPenalty(max_length=8, cache=4),))


def grpo_reference(case: Case, new: list[float]) -> float:
    return reference_grpo.loss(case.paths, case.rewards, case.tasks, new, case.old, case.ref)


def dr_grpo_reference(case: Case, new: list[float]) -> float:
    return reference_dr_grpo.loss(case.paths, case.rewards, case.tasks, new, case.old, length=16)


def dapo_reference(case: Case, new: list[float]) -> float:
    nothing = [False] * len(case.paths)
    return reference_dapo.loss(
        case.paths, case.rewards, case.tasks, new, case.old, max_length=8, cache=4, masked=nothing
    )


def dapo_filter_reference(case: Case, new: list[float]) -> float:
    return reference_dapo.loss(
        case.paths, case.rewards, case.tasks, new, case.old, max_length=8, cache=4, masked=case.truncated
    )


def arpo_reference(case: Case, new: list[float]) -> float:
    return reference_arpo.loss(case.paths, case.rewards, case.tasks, new, case.old, hard=False)


def arpo_hard_reference(case: Case, new: list[float]) -> float:
    return reference_arpo.loss(case.paths, case.rewards, case.tasks, new, case.old, hard=True)


def arpo_released_reference(case: Case, new: list[float]) -> float:
    return reference_arpo.released_loss(case.paths, case.rewards, case.tasks, new, case.old)


PAIRS = [
    pytest.param(RECIPES["grpo"], grpo_reference, id="grpo"),
    pytest.param(replace(RECIPES["dr_grpo"], aggregation=Constant(16)), dr_grpo_reference, id="dr_grpo"),
    pytest.param(DAPO, dapo_reference, id="dapo"),
    pytest.param(replace(DAPO, mask_truncated=True), dapo_filter_reference, id="dapo-overlong-filter"),
    pytest.param(RECIPES["arpo"], arpo_reference, id="arpo"),
    pytest.param(
        replace(RECIPES["arpo"], aggregation=TokenMean(), surrogate=Clip(dual=3.0)),
        arpo_released_reference,
        id="arpo-released-code",
    ),
    pytest.param(RECIPES["arpo_hard"], arpo_hard_reference, id="arpo_hard"),
]


def loss_and_gradients(recipe: Recipe, case: Case) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss, its gradient by token id [U], and its gradient by position [B, L]."""
    ids = torch.tensor(case.new, dtype=torch.float64, requires_grad=True)
    logprobs = case.gather(ids)
    logprobs.retain_grad()
    loss, _ = policy_loss(
        recipe,
        case.batch,
        logprobs,
        old_logprobs=case.gather(torch.tensor(case.old, dtype=torch.float64)),
        ref_logprobs=case.gather(torch.tensor(case.ref, dtype=torch.float64)) if recipe.needs_reference else None,
        advantages=compute_advantages(recipe, case.batch),
        weights=compute_weights(recipe, case.batch),
    )
    loss.backward()
    assert ids.grad is not None
    assert logprobs.grad is not None
    return float(loss.detach()), ids.grad, logprobs.grad


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("recipe", "reference"), PAIRS)
def test_value_and_gradient_equal_the_reference(recipe: Recipe, reference: Reference, seed: int) -> None:
    case = make_case(seed)
    value, by_id, _ = loss_and_gradients(recipe, case)
    assert value == pytest.approx(reference(case, case.new), abs=TOLERANCE)
    for token, gradient in enumerate(by_id.tolist()):
        up = [value + STEP * (i == token) for i, value in enumerate(case.new)]
        down = [value - STEP * (i == token) for i, value in enumerate(case.new)]
        slope = (reference(case, up) - reference(case, down)) / (2 * STEP)
        assert gradient == pytest.approx(slope, abs=TOLERANCE), f"token {token}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("recipe", "reference"), PAIRS)
def test_garbage_outside_the_mask_has_gradient_zero(recipe: Recipe, reference: Reference, seed: int) -> None:
    case = make_case(seed)
    _, _, by_position = loss_and_gradients(recipe, case)
    assert (~torch.isfinite(case.garbage[~case.batch.mask])).any()
    assert (by_position[~case.batch.mask] == 0).all()
    assert torch.isfinite(by_position).all()
    assert (by_position[case.batch.mask] != 0).any()


def test_the_cases_hold_what_they_promise() -> None:
    seen: set[tuple[float, bool, bool]] = set()
    for seed in SEEDS:
        case = make_case(seed)
        sizes = [case.tasks.count(task) for task in set(case.tasks)]
        assert 1 in sizes
        assert [] in case.paths
        assert any(
            len({r for r, t in zip(case.rewards, case.tasks, strict=True) if t == task}) == 1 < case.tasks.count(task)
            for task in set(case.tasks)
        )
        advantages = compute_advantages(RECIPES["arpo"], case.batch)
        ratios = (case.gather(torch.tensor(case.new)) - case.gather(torch.tensor(case.old))).exp()
        for edge in EDGES:
            near = ((ratios - edge).abs() < 2e-3 * edge) & case.batch.mask
            seen |= {
                (edge, bool(ratio > edge), bool(advantage > 0))
                for ratio, advantage in zip(ratios[near], advantages[near], strict=True)
                if advantage != 0
            }
    assert len(seen) == len(EDGES) * 2 * 2  # every edge from both sides with both signs


@pytest.mark.parametrize(("recipe", "reference"), PAIRS)
def test_references_can_tell_a_wrong_recipe(recipe: Recipe, reference: Reference) -> None:
    """Negative control: a clip bound off by 0.01 is seen."""
    assert isinstance(recipe.surrogate, Clip)
    wrong = replace(recipe, surrogate=replace(recipe.surrogate, high=recipe.surrogate.high + 0.01))
    deviations = [abs(loss_and_gradients(wrong, c)[0] - reference(c, c.new)) for c in map(make_case, SEEDS)]
    assert max(deviations) > 100 * TOLERANCE
