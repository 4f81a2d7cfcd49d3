"""Ratio levels and soft surrogates against plain-Python references written from their papers."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import reference_arpo
import reference_cispo
import reference_gmpo
import reference_gspo
import reference_gspo_token
import reference_sapo
from loss_rows import SEEDS, Loss, Row, advantages_of, assert_agrees, assert_has_teeth
from path_cases import Case, aimed, make_case

from agentrl.trainers import Clip, GroupNormalized, Recipe, SharedMean, Surrogate
from agentrl.trainers.recipes.cispo import cispo
from agentrl.trainers.recipes.gmpo import gmpo
from agentrl.trainers.recipes.gspo import gspo, gspo_token
from agentrl.trainers.recipes.sapo import sapo
from agentrl.trainers.soft_surrogates import DetachedRatio, GeometricClip, SoftGate

GSPO_EDGES = (1 - 3e-4, 1 + 4e-4)
CISPO_EDGES = (0.8, 1.2, 5.0)
GMPO_EDGES = (math.exp(-0.4), math.exp(0.4))


def geometric_mean(log_ratios: list[float]) -> float:
    return math.exp(sum(log_ratios) / len(log_ratios))


def sequences(seed: int) -> Case:
    """Trajectories whose geometric mean ratio lies beside GSPO's bounds."""
    return aimed(make_case(seed), geometric_mean, GSPO_EDGES, seed)


def beside(*edges: float) -> Callable[[int], Case]:
    return lambda seed: make_case(seed, edges)


def gspo_reference(case: Case) -> Loss:
    return lambda new: reference_gspo.loss(case.paths, case.rewards, case.tasks, new, case.old)


def gspo_token_reference(case: Case) -> Loss:
    return lambda new: reference_gspo_token.loss(case.paths, case.rewards, case.tasks, new, case.old, frozen=case.new)


def gspo_token_hard_reference(case: Case) -> Loss:
    """With ARPO's hard advantages, which differ from token to token."""
    scores = reference_arpo.normalized_outcomes(case.rewards, case.tasks, 1e-6)
    own = reference_arpo.token_advantages(case.paths, scores, hard=True)
    advantages = [[row[token] for token in path] for path, row in zip(case.paths, own, strict=True)]
    return lambda new: reference_gspo_token.loss(
        case.paths, case.rewards, case.tasks, new, case.old, token_advantages=advantages, frozen=case.new
    )


def sapo_reference(case: Case) -> Loss:
    return lambda new: reference_sapo.loss(case.paths, case.rewards, case.tasks, new, case.old)


def cispo_reference(case: Case, *, low: float = 10.0, high: float = 4.0) -> Loss:
    return lambda new: reference_cispo.loss(
        case.paths, case.rewards, case.tasks, new, case.old, low=low, high=high, frozen=case.new
    )


def cispo_verl_reference(case: Case) -> Loss:
    return cispo_reference(case, low=0.2, high=0.2)


def cispo_trl_reference(case: Case) -> Loss:
    return lambda new: reference_cispo.trl_loss(
        case.paths, case.rewards, case.tasks, new, case.old, largest=5.0, frozen=case.new
    )


def gmpo_reference(case: Case) -> Loss:
    return lambda new: reference_gmpo.loss(case.paths, case.rewards, case.tasks, new, case.old)


def row(
    name: str, recipe: Recipe, reference: Callable[[Case], Loss], wrong: Surrogate, cases: Callable[[int], Case]
) -> Row:
    return Row(name, recipe, reference, replace(recipe, surrogate=wrong), cases)


NARROW = Clip(low=3e-4, high=3e-4)
HARD = SharedMean(GroupNormalized())
ROWS = [
    row("gspo", gspo(), gspo_reference, NARROW, sequences),
    row("gspo_token", gspo_token(), gspo_token_reference, NARROW, sequences),
    row(
        "gspo_token, advantages per token",
        replace(gspo_token(), advantage=HARD),
        gspo_token_hard_reference,
        NARROW,
        sequences,
    ),
    row("sapo", sapo(), sapo_reference, SoftGate(tau_pos=1.0, tau_neg=1.0), make_case),
    row("cispo", cispo(), cispo_reference, DetachedRatio(high=4.1), beside(*CISPO_EDGES)),
    row(
        "cispo, verl's bounds",
        replace(cispo(), surrogate=DetachedRatio(low=0.2, high=0.2)),
        cispo_verl_reference,
        DetachedRatio(high=0.2),
        beside(*CISPO_EDGES),
    ),
    row(
        "cispo, TRL's bound and epsilon",
        replace(cispo(), advantage=GroupNormalized(eps=1e-4)),
        cispo_trl_reference,
        DetachedRatio(high=5.0),
        beside(*CISPO_EDGES),
    ),
    row("gmpo", gmpo(), gmpo_reference, GeometricClip(width=0.41), beside(*GMPO_EDGES)),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@rows
@pytest.mark.parametrize("seed", SEEDS)
def test_value_and_gradient_equal_the_reference(row: Row, seed: int) -> None:
    assert_agrees(row, seed)


@rows
def test_references_can_tell_a_wrong_recipe(row: Row) -> None:
    assert_has_teeth(row)


def sides(
    case: Case, ratios: list[list[float]], edges: tuple[float, ...], width: float
) -> set[tuple[float, bool, bool]]:
    """Which edges the ratios are close to, on which side, and the sign of the advantage."""
    advantages = advantages_of(gspo(), case)
    signs = [float(row[mask][0]) if mask.any() else 0.0 for row, mask in zip(advantages, case.batch.mask, strict=True)]
    return {
        (edge, ratio > edge, sign > 0)
        for row, sign in zip(ratios, signs, strict=True)
        for ratio in row
        for edge in edges
        if abs(ratio - edge) < width * edge and sign != 0
    }


def test_every_bound_is_met_from_both_sides_with_both_signs() -> None:
    met = set()
    for case in map(sequences, SEEDS):
        log_ratios = [[case.new[t] - case.old[t] for t in path] for path in case.paths]
        met |= sides(case, [[geometric_mean(row)] if row else [] for row in log_ratios], GSPO_EDGES, 3e-5)
    assert len(met) == len(GSPO_EDGES) * 2 * 2
    for edges in (CISPO_EDGES, GMPO_EDGES):
        met = set()
        for case in map(beside(*edges), SEEDS):
            ratios = [[math.exp(case.new[t] - case.old[t]) for t in path] for path in case.paths]
            met |= sides(case, ratios, edges, 2e-3)
        assert len(met) == len(edges) * 2 * 2
