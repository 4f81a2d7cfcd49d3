"""The REINFORCE family against plain-Python references written from its papers."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import reference_gpg
import reference_opo
import reference_reinforce
import reference_reinforce_pp
import reference_reinforce_pp_baseline
import reference_remax
import reference_rloo
from loss_rows import SEEDS, Loss, Row, advantages_of, assert_agrees, assert_has_teeth
from path_cases import Case, aimed, make_case

from agentrl.rollout.plan import GroupPlan
from agentrl.trainers import Clip, GroupNormalized, KLEstimator, KLPenalty, KLPlace, Recipe, TokenMean
from agentrl.trainers.advantages import GroupCentered
from agentrl.trainers.baselines import BatchCentered, WhitenedReturns
from agentrl.trainers.recipes.library_presets import rloo_trl
from agentrl.trainers.recipes.opo import opo
from agentrl.trainers.recipes.reinforce import reinforce
from agentrl.trainers.recipes.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from agentrl.trainers.recipes.remax import remax
from agentrl.trainers.recipes.rloo import rloo

K1 = KLPenalty(coef=0.1, estimator=KLEstimator.K1, place=KLPlace.REWARD)


def reinforce_reference(case: Case, *, beta: float) -> Loss:
    return lambda new: reference_reinforce.loss(case.paths, case.rewards, new, case.old, case.ref, beta=beta)


def rloo_reference(case: Case) -> Loss:
    return lambda new: reference_rloo.loss(case.paths, case.rewards, case.tasks, new, case.old, case.ref)


def rloo_trl_reference(case: Case) -> Loss:
    return lambda new: reference_rloo.trl_loss(case.paths, case.rewards, case.tasks, new, case.old, case.ref)


def remax_reference(case: Case) -> Loss:
    return lambda new: reference_remax.loss(case.paths, case.rewards, case.greedy, new, case.old, case.ref, beta=0.01)


def reinforce_pp_reference(case: Case, *, beta: float = 0.01, gamma: float = 1.0) -> Loss:
    return lambda new: reference_reinforce_pp.loss(
        case.paths, case.rewards, new, case.old, case.ref, beta=beta, gamma=gamma
    )


def reinforce_pp_baseline_reference(case: Case) -> Loss:
    return lambda new: reference_reinforce_pp_baseline.loss(
        case.paths, case.rewards, case.tasks, new, case.old, case.ref
    )


def opo_reference(case: Case) -> Loss:
    return lambda new: reference_opo.loss(case.paths, case.rewards, case.tasks, new, case.old)


def gpg_reference(case: Case) -> Loss:
    return lambda new: reference_gpg.loss(case.paths, case.rewards, case.tasks, new, alpha=1.0)


def row(name: str, recipe: Recipe, reference: Callable[[Case], Loss], cases: Callable[[int], Case] = make_case) -> Row:
    """`wrong` has GRPO's advantage."""
    return Row(name, recipe, reference, replace(recipe, advantage=GroupNormalized(), sampling=GroupPlan(size=8)), cases)


def products(seed: int) -> Case:
    """Trajectories whose ratio of joint probabilities lies beside PPO's bounds."""
    return aimed(make_case(seed), lambda log_ratios: math.exp(sum(log_ratios)), (0.8, 1.2), seed)


ROWS = [
    row("reinforce", reinforce(), partial(reinforce_reference, beta=0.0)),
    row("reinforce, KL in the reward", replace(reinforce(), kl=K1), partial(reinforce_reference, beta=0.1)),
    row("rloo", rloo(), rloo_reference),
    row("rloo_trl", rloo_trl(), rloo_trl_reference, products),
    row("remax", remax(), remax_reference),
    row("reinforce_pp", reinforce_pp(), reinforce_pp_reference),
    row(
        "reinforce_pp, discounted",
        replace(reinforce_pp(), advantage=WhitenedReturns(gamma=0.9), kl=K1),
        partial(reinforce_pp_reference, beta=0.1, gamma=0.9),
    ),
    row("reinforce_pp_baseline", reinforce_pp_baseline(), reinforce_pp_baseline_reference),
    row("opo", opo(), opo_reference),
    row("gpg (alpha 1)", replace(reinforce(), advantage=GroupCentered(), aggregation=TokenMean()), gpg_reference),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@rows
@pytest.mark.parametrize("seed", SEEDS)
def test_value_and_gradient_equal_the_reference(row: Row, seed: int) -> None:
    assert_agrees(row, seed)


@rows
def test_references_can_tell_a_wrong_recipe(row: Row) -> None:
    assert_has_teeth(row)


@pytest.mark.parametrize("seed", SEEDS)
def test_who_gets_no_advantage(seed: int) -> None:
    """Groups of one and of equal rewards: exactly 0 where the group is the baseline; the batch's mean knows better."""
    case = make_case(seed)
    lone = [i for i, task in enumerate(case.tasks) if case.tasks.count(task) == 1 and case.paths[i]]
    equal = [i for i, task in enumerate(case.tasks) if task == 2]
    assert lone
    assert len(equal) > 1
    for i in lone + equal:
        assert not advantages_of(opo(), case)[i].any()
        assert not advantages_of(replace(rloo(), kl=None), case)[i].any()
        assert advantages_of(replace(reinforce(), advantage=BatchCentered()), case)[i].any() == bool(case.paths[i])
    assert advantages_of(reinforce_pp_baseline(), case)[equal[0]].any()  # -mean / std of the whole batch


@pytest.mark.parametrize("seed", SEEDS)
def test_both_sides_of_the_bounds_of_whole_trajectories_occur(seed: int) -> None:
    case = products(seed)
    ratios = [sum(case.new[t] - case.old[t] for t in path) for path in case.paths if path]
    near = [(edge, x > edge) for x in map(math.exp, ratios) for edge in (0.8, 1.2) if abs(x - edge) < 1e-4]
    assert len(near) > len(ratios) / 3
    assert len(set(near)) >= 3
    assert isinstance(rloo_trl().surrogate, Clip)
