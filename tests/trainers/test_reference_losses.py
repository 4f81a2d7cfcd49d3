"""GRPO's family against plain-Python references written from its papers: values and gradients on random batches."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import reference_arpo
import reference_dapo
import reference_dr_grpo
import reference_grpo
import reference_tools
import reference_two_sided_clip
import torch
from loss_rows import SEEDS, Loss, Row, assert_agrees, assert_has_teeth, loss_and_gradients
from path_cases import EDGES, Case, make_case

from agentrl.trainers import Clip, Constant, OverlongPenalty, Recipe, TokenMean, compute_advantages
from agentrl.trainers.recipes.arpo import arpo, arpo_hard
from agentrl.trainers.recipes.dapo import dapo
from agentrl.trainers.recipes.dr_grpo import dr_grpo
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.library_presets import grpo_trl, grpo_verl

# Lengths of the cases are 0 to 12, so that all three branches of the overlong penalty occur.
DAPO = replace(dapo(), shaping=(OverlongPenalty(max_length=8, cache=4),))


def grpo_reference(case: Case) -> Loss:
    return lambda new: reference_grpo.loss(case.paths, case.rewards, case.tasks, new, case.old, case.ref)


def dr_grpo_reference(case: Case) -> Loss:
    return lambda new: reference_dr_grpo.loss(case.paths, case.rewards, case.tasks, new, case.old, length=16)


def dapo_reference(case: Case, *, masked: bool = False) -> Loss:
    out = case.truncated if masked else [False] * len(case.paths)
    return lambda new: reference_dapo.loss(
        case.paths, case.rewards, case.tasks, new, case.old, max_length=8, cache=4, masked=out
    )


def arpo_reference(case: Case, *, hard: bool) -> Loss:
    return lambda new: reference_arpo.loss(case.paths, case.rewards, case.tasks, new, case.old, hard=hard)


def verl_reference(case: Case) -> Loss:
    """Of GRPO and of ARPO's released code, which is stock verl."""
    return lambda new: reference_arpo.released_loss(case.paths, case.rewards, case.tasks, new, case.old)


def trl_reference(case: Case) -> Loss:
    """TRL's default: the other epsilon, and all tokens count the same."""
    scores = reference_tools.group_z_scores(case.rewards, case.tasks, 1e-4)

    def loss(new: list[float]) -> float:
        return reference_tools.token_mean(
            [
                [-reference_tools.clipped(math.exp(new[t] - case.old[t]), a, 0.2, 0.2) for t in path]
                for path, a in zip(case.paths, scores, strict=True)
            ]
        )

    return loss


def two_sided_reference(case: Case) -> Loss:
    return lambda new: reference_two_sided_clip.loss(
        case.paths, case.rewards, case.tasks, new, case.old, delta=3.0, clip_high=0.28
    )


def row(name: str, recipe: Recipe, reference: Callable[[Case], Loss]) -> Row:
    """`wrong` clips 0.01 later."""
    assert isinstance(recipe.surrogate, Clip)
    wrong = replace(recipe, surrogate=replace(recipe.surrogate, high=recipe.surrogate.high + 0.01))
    return Row(name, recipe, reference, wrong)


ROWS = [
    row("grpo", grpo(), grpo_reference),
    row("grpo_trl", grpo_trl(), trl_reference),
    row("grpo_verl", grpo_verl(), verl_reference),
    row("dr_grpo", replace(dr_grpo(), aggregation=Constant(16)), dr_grpo_reference),
    row("dapo", DAPO, dapo_reference),
    row("dapo, overlong filter", replace(DAPO, mask_truncated=True), partial(dapo_reference, masked=True)),
    row("arpo", arpo(), partial(arpo_reference, hard=False)),
    row("arpo, released code", replace(arpo(), aggregation=TokenMean(), surrogate=Clip(dual=3.0)), verl_reference),
    row("arpo_hard", arpo_hard(), partial(arpo_reference, hard=True)),
    row(
        "two-sided clip",
        replace(dapo(), shaping=(), surrogate=Clip(low=0.2, high=0.28, dual=3.0)),
        two_sided_reference,
    ),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@rows
@pytest.mark.parametrize("seed", SEEDS)
def test_value_and_gradient_equal_the_reference(row: Row, seed: int) -> None:
    assert_agrees(row, seed)


@rows
def test_references_can_tell_a_wrong_recipe(row: Row) -> None:
    assert_has_teeth(row)


@rows
@pytest.mark.parametrize("edge", [1.0, *EDGES])
def test_exactly_at_a_bound_the_gradient_is_one_of_both_sides(row: Row, edge: float) -> None:
    """Ties of the two terms of a minimum: the value is the reference's, the slope none that no side has."""
    case = make_case(3)
    case = case.moved([old + math.log(edge) for old in case.old])
    loss = row.reference(case)
    value, by_id, _ = loss_and_gradients(row.recipe, case)
    here = loss(case.new)
    assert value == pytest.approx(here, abs=1e-6)
    for token, slope in enumerate(by_id.tolist()):
        beside = []
        for step in (-1e-6, 1e-6):
            moved = list(case.new)
            moved[token] += step
            beside.append((loss(moved) - here) / step)
        assert min(beside) - 1e-5 < slope < max(beside) + 1e-5


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
        advantages = compute_advantages(arpo(), case.batch)
        ratios = (case.column(case.new) - case.column(case.old)).exp()
        for edge in EDGES:
            near = ((ratios - edge).abs() < 2e-3 * edge) & case.batch.mask
            seen |= {
                (edge, bool(ratio > edge), bool(advantage > 0))
                for ratio, advantage in zip(ratios[near], advantages[near], strict=True)
                if advantage != 0
            }
        for column in (case.batch.logprobs, case.batch.entropies):
            assert not torch.isfinite(column[~case.batch.mask]).all()
    assert len(seen) == len(EDGES) * 2 * 2  # every edge from both sides with both signs
