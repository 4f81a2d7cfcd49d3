"""Estimators that know turns, states and trees against plain-Python references: values and gradients."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import reference_gigpo
import reference_grpo_process
import reference_mt_grpo
import reference_several_rewards
import reference_tools
import reference_tree_grpo
import torch
from path_cases import Case, make_case
from step_cases import StepCase, make_step_case, rows_of
from test_reference_losses import loss_and_gradients

from agentrl.trainers import Clip, Recipe
from agentrl.trainers.multi_reward import NormalizeThenSum, PartWeights
from agentrl.trainers.objective import compute_advantages
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.recipes.gigpo import gigpo
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.prm import prm
from agentrl.trainers.step_advantages import FirstTurn, ProcessNormalized, StateGroups, TreeNormalized

TOLERANCE = 1e-6
SEEDS = range(6)
STEP = 1e-6

Reference = Callable[[StepCase, list[float]], float]


def lone_turns(made: StepCase) -> list[list[float]]:
    """A trajectory's only turn has no reward of its own for MT-GRPO: what it got is the outcome."""
    return [given if len(given) > 1 else [0.0] for given in made.turn_rewards]


def gigpo_reference(made: StepCase, new: list[float]) -> float:
    case = made.case
    return reference_gigpo.loss(
        case.paths, case.rewards, case.tasks, made.turns, made.turn_rewards, made.states, new, case.old, case.ref
    )


def gigpo_std_reference(made: StepCase, new: list[float]) -> float:
    case = made.case
    return reference_gigpo.loss(
        case.paths,
        case.rewards,
        case.tasks,
        made.turns,
        made.turn_rewards,
        made.states,
        new,
        case.old,
        case.ref,
        std=True,
        weight=0.7,
        gamma=0.5,
    )


def mt_grpo_reference(made: StepCase, new: list[float]) -> float:
    case = made.case
    return reference_mt_grpo.loss(
        case.paths, case.rewards, case.tasks, made.turns, lone_turns(made), new, case.old, case.ref
    )


def tree_grpo_reference(made: StepCase, new: list[float]) -> float:
    case = made.case
    return reference_tree_grpo.loss(case.paths, case.rewards, case.tasks, made.roots, new, case.old, case.ref)


def process_reference(made: StepCase, new: list[float]) -> float:
    case = made.case
    return reference_grpo_process.loss(case.paths, made.turns, made.turn_rewards, case.tasks, new, case.old, case.ref)


PAIRS = [
    pytest.param(RECIPES["gigpo"], gigpo_reference, id="gigpo"),
    pytest.param(
        replace(gigpo(), advantage=StateGroups(weight=0.7, gamma=0.5, scale=True)),
        gigpo_std_reference,
        id="gigpo-mean-std-norm",
    ),
    pytest.param(RECIPES["mt_grpo"], mt_grpo_reference, id="mt_grpo"),
    pytest.param(RECIPES["tree_grpo"], tree_grpo_reference, id="tree_grpo"),
    pytest.param(prm(), process_reference, id="prm"),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("recipe", "reference"), PAIRS)
def test_value_and_gradient_equal_the_reference(recipe: Recipe, reference: Reference, seed: int) -> None:
    made = make_step_case(seed)
    value, by_id, by_position = loss_and_gradients(recipe, made.case)
    assert value == pytest.approx(reference(made, made.case.new), abs=TOLERANCE)
    for token, gradient in enumerate(by_id.tolist()):
        up = [value + STEP * (i == token) for i, value in enumerate(made.case.new)]
        down = [value - STEP * (i == token) for i, value in enumerate(made.case.new)]
        slope = (reference(made, up) - reference(made, down)) / (2 * STEP)
        assert gradient == pytest.approx(slope, abs=TOLERANCE), f"token {token}"
    mask = made.case.batch.mask
    assert (by_position[~mask] == 0).all()
    assert (by_position[mask] != 0).any()


@pytest.mark.parametrize(("recipe", "reference"), PAIRS)
def test_references_can_tell_a_wrong_recipe(recipe: Recipe, reference: Reference) -> None:
    """Negative control: an advantage off by one percent, or GRPO's in its place, is seen."""
    wrong = replace(recipe, advantage=grpo().advantage)
    cases = list(map(make_step_case, SEEDS))
    deviations = [abs(loss_and_gradients(wrong, made.case)[0] - reference(made, made.case.new)) for made in cases]
    assert max(deviations) > 100 * TOLERANCE
    assert isinstance(recipe.surrogate, Clip)
    wrong = replace(recipe, surrogate=replace(recipe.surrogate, high=recipe.surrogate.high + 0.01))
    deviations = [abs(loss_and_gradients(wrong, made.case)[0] - reference(made, made.case.new)) for made in cases]
    assert max(deviations) > 100 * TOLERANCE


def test_the_cases_hold_what_they_promise() -> None:
    """Multi-turn and one-turn and empty trajectories, states met once, twice in one trajectory and across them."""
    lengths: set[int] = set()
    met: set[str] = set()
    for made in map(make_step_case, SEEDS):
        lengths |= {len(given) for given in made.turn_rewards}
        for task in set(made.case.tasks):
            rows = [row for row, t in zip(made.states, made.case.tasks, strict=True) if t == task]
            for key in {key for row in rows for key in row}:
                per_row = [row.count(key) for row in rows]
                met |= {"unknown"} if key[0] == "?" else set()
                met |= {"once"} if sum(per_row) == 1 else set()
                met |= {"twice in one"} if max(per_row) > 1 else set()
                met |= {"across"} if sum(count > 0 for count in per_row) > 1 else set()
        rewards = {made.case.rewards[i] for i, t in enumerate(made.case.tasks) if t == 2}
        assert len(rewards) == 1
        members = [i for i, t in enumerate(made.case.tasks) if t == 0]
        assert len(members) > len({made.roots[i] for i in members})
        assert not torch.isfinite(made.case.batch.turn_rewards[~made.case.batch.mask]).all()
    assert lengths == {0, 1, 2, 3, 4}
    assert met == {"unknown", "once", "twice in one", "across"}


# Several rewards ------------------------------------------------------------------------------------------------------

WEIGHTS = {"answer": 1.0, "format": 0.25, "speed": -2.0}


def with_parts(case: Case, seed: int) -> tuple[Case, list[list[float]]]:
    """A case whose rewards come in three parts; one of them is the same in all trajectories of the batch."""
    values = torch.randint(-8, 9, (len(case.paths), 3), generator=torch.Generator().manual_seed(seed)).double() / 8
    values[:, 2] = 0.5
    rewards = values.sum(dim=1)
    batch = replace(case.batch, rewards=rewards, reward_parts=values, part_names=tuple(WEIGHTS))
    return replace(case, rewards=rewards.tolist(), batch=batch), values.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_both_ways_to_combine_rewards_equal_their_references(seed: int) -> None:
    case, components = with_parts(make_case(seed), seed)
    apart = replace(grpo(), advantage=NormalizeThenSum(weights=WEIGHTS))
    expected = reference_several_rewards.normalize_then_sum(
        case.paths, components, case.tasks, weights=list(WEIGHTS.values())
    )
    for row, rows in zip(rows_of(compute_advantages(apart, case.batch), case), expected, strict=True):
        assert row == pytest.approx(rows, abs=TOLERANCE)
    together = replace(grpo(), shaping=(PartWeights(weights=WEIGHTS),))
    expected = reference_several_rewards.sum_then_normalize(
        case.paths, components, case.tasks, weights=list(WEIGHTS.values())
    )
    for row, rows in zip(rows_of(compute_advantages(together, case.batch), case), expected, strict=True):
        assert row == pytest.approx(rows, abs=TOLERANCE)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_of_gdpo_equals_the_reference(seed: int) -> None:
    """GRPO's loss on GDPO's advantages, written out."""
    case, components = with_parts(make_case(seed), seed)
    advantages = reference_several_rewards.normalize_then_sum(
        case.paths, components, case.tasks, weights=list(WEIGHTS.values())
    )

    def reference(new: list[float]) -> float:
        rows = []
        for path, row in zip(case.paths, advantages, strict=True):
            ratios = [math.exp(new[token] - case.old[token]) for token in path]
            rows.append([-reference_tools.clipped(r, a, 0.2, 0.2) for r, a in zip(ratios, row, strict=True)])
        return reference_tools.sequence_mean_token_mean(rows)

    value, by_id, _ = loss_and_gradients(replace(grpo(), kl=None, advantage=NormalizeThenSum(weights=WEIGHTS)), case)
    assert value == pytest.approx(reference(case.new), abs=TOLERANCE)
    assert by_id.tolist() == pytest.approx(reference_tools.gradient(reference, case.new, step=STEP), abs=TOLERANCE)


def test_parts_are_found_by_type() -> None:
    parts = [RECIPES[name].advantage for name in ("gigpo", "mt_grpo", "tree_grpo", "prm")]  # type: ignore[union-attr]
    assert parts == [StateGroups(), FirstTurn(), TreeNormalized(), ProcessNormalized()]
