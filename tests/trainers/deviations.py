"""How far every algorithm is from its independent reference: `python tests/trainers/deviations.py` prints the table.

Losses and their gradients by central differences, on random ragged batches that the tests do not use.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "references"))

import reference_ppo
import reference_several_rewards
import reference_tools
import reference_trpo
import test_preference_losses as preferences
import test_reference_baselines
import test_reference_critic as critic
import test_reference_entropy
import test_reference_losses
import test_reference_ratios
import test_reference_steps as steps
import torch
from loss_rows import Deviation, Loss, Row, apart, deviation, loss_and_gradients
from path_cases import Case, make_case
from step_cases import make_step_case, rows_of

from agentrl.trainers import RECIPES, NormalizeThenSum, PartWeights, PreferenceRecipe, Recipe
from agentrl.trainers.masking import zero_outside
from agentrl.trainers.objective import compute_weights
from agentrl.trainers.preference.parts import PreferenceLoss
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.trust_region import distribution_kl
from agentrl.trainers.value_loss import ValueLoss

Measure = Callable[[int], Deviation]
"""From a seed."""

F64 = torch.float64
FRESH = range(100, 110)
ROWS: list[Row] = [
    *test_reference_losses.ROWS,
    *test_reference_baselines.ROWS,
    *test_reference_ratios.ROWS,
    *test_reference_entropy.ROWS,
]
SAME_LOSS = {"gapo": "ppo", "prm_monte_carlo": "prm", "prm_model": "prm", "dpo_siblings": "dpo"}
"""Other rewards or other pairs, the same loss."""
NO_LOSS_OF_THEIR_OWN = {"sft", "star"}
"""-mean log p: nothing to measure beside the forward pass."""


def of_loss(recipe: Recipe, case: Case, loss: Loss) -> Deviation:
    value, by_id, _ = loss_and_gradients(recipe, case)
    return apart(value, by_id, loss, case.new)


def with_steps(recipe: Recipe, reference: steps.Reference, seed: int) -> Deviation:
    """Of what knows turns, states and trees."""
    made = make_step_case(seed)
    return of_loss(recipe, made.case, partial(reference, made))


def with_critic(recipe: Recipe, options: dict[str, float], seed: int) -> Deviation:
    made = make_step_case(seed)
    case = replace(made.case, values=critic.values_of(made.case))

    def loss(new: list[float]) -> float:
        return reference_ppo.loss(
            case.paths, made.turns, made.turn_rewards, case.values, new, case.old, case.ref, **options
        )

    return of_loss(recipe, case, loss)


def value_loss(seed: int, *, clip: float) -> Deviation:
    made = make_step_case(seed)
    case, old, new = made.case, critic.values_of(made.case), critic.values_of(made.case, shift=1.5)
    recipe = critic.ppo()
    targets = critic.credit(recipe, made)[1]
    ids = torch.tensor(new, dtype=F64, requires_grad=True)
    losses, _ = ValueLoss(clip=clip)(case.gather(ids), case.column(old), targets, case.batch.mask)
    total = (losses * compute_weights(recipe, case.batch)).sum()
    total.backward()
    assert ids.grad is not None
    rows = rows_of(targets, case)
    return apart(
        float(total.detach()),
        ids.grad,
        lambda values: reference_ppo.value_loss(case.paths, rows, values, old, clip=clip),
        new,
    )


def divergence(seed: int) -> Deviation:
    """The mean KL between whole distributions that TRPO bounds; the gradient is that of the logits."""
    case, size = make_case(seed), 5
    logits = torch.randn(2, len(case.new), size, generator=torch.Generator().manual_seed(seed), dtype=F64)
    old, raw = torch.log_softmax(logits[0], dim=-1), logits[1].clone().requires_grad_()
    trpo = RECIPES["trpo"]
    assert isinstance(trpo, Recipe)
    kl = case.gather(distribution_kl(old, torch.log_softmax(raw, dim=-1)))
    total = (zero_outside(kl, case.batch.mask) * compute_weights(trpo, case.batch)).sum()
    total.backward()
    assert raw.grad is not None

    def loss(flat: list[float]) -> float:
        rows = [flat[start : start + size] for start in range(0, len(flat), size)]
        norms = [math.log(math.fsum(map(math.exp, row))) for row in rows]
        new = [[value - norm for value in row] for row, norm in zip(rows, norms, strict=True)]
        return reference_trpo.mean_kl(case.paths, old.tolist(), new)

    return apart(float(total.detach()), raw.grad.flatten(), loss, raw.detach().flatten().tolist())


def several_rewards(seed: int, *, together: bool) -> Deviation:
    """GRPO on rewards of three parts."""
    case, components = steps.with_parts(make_case(seed), seed)
    combine = reference_several_rewards.sum_then_normalize if together else reference_several_rewards.normalize_then_sum
    advantages = combine(case.paths, components, case.tasks, weights=list(steps.WEIGHTS.values()))
    plain = replace(grpo(), kl=None)
    recipe = (
        replace(plain, shaping=(PartWeights(weights=steps.WEIGHTS),))
        if together
        else replace(plain, advantage=NormalizeThenSum(weights=steps.WEIGHTS))
    )

    def loss(new: list[float]) -> float:
        rows = []
        for path, row in zip(case.paths, advantages, strict=True):
            ratios = [math.exp(new[token] - case.old[token]) for token in path]
            rows.append([-reference_tools.clipped(r, a, 0.2, 0.2) for r, a in zip(ratios, row, strict=True)])
        return reference_tools.sequence_mean_token_mean(rows)

    return of_loss(recipe, case, loss)


def of_preference(loss: PreferenceLoss, seed: int) -> Deviation:
    preferred = preferences.prefer(seed)
    likely = [min(value, -0.01) for value in preferred.case.new]  # ORPO's odds take probabilities below 1
    preferred = replace(preferred, case=preferred.case.moved(likely))
    value, by_id, _ = preferences.differentiate(loss, preferred)
    return apart(value, by_id, preferences.reference_loss(loss, preferred), preferred.case.new)


def label(pair: Any) -> str:
    """Of a parameter set of a test: the recipe's name, and what is different about it."""
    name = pair.values[0].name
    return name if pair.id == name else f"{name}, {pair.id.removeprefix(name + '-')}"


def measures() -> dict[str, Measure]:
    """What can be measured, by name; recipes under theirs."""
    found: dict[str, Measure] = {row.name: partial(deviation, row) for row in ROWS}
    for measure, pairs in ((with_steps, steps.PAIRS), (with_critic, critic.PPO_PAIRS)):
        found |= {label(pair): partial(measure, *pair.values) for pair in pairs}
    found |= {f"ppo, value loss, clip {clip}": partial(value_loss, clip=clip) for clip in (0.5, 0.01)}
    found["trpo, divergence"] = divergence
    found |= {
        name: partial(several_rewards, together=name.startswith("sum"))
        for name in ("sum_then_normalize", "normalize_then_sum")
    }
    for name, entry in RECIPES.items():
        if isinstance(entry, PreferenceRecipe) and name not in SAME_LOSS:
            found[name] = partial(of_preference, entry.loss)
    return found


def table(chosen: dict[str, Measure], seeds: Iterable[int]) -> Iterable[str]:
    """Markdown, line by line: the largest deviations over the seeds."""
    yield "| algorithm | value | gradient |"
    yield "|---|---|---|"
    for name, measure in sorted(chosen.items()):
        largest = Deviation(*map(max, zip(*map(measure, seeds), strict=True)))
        yield f"| {name} | {largest.value:.0e} | {largest.gradient:.0e} |"


if __name__ == "__main__":
    for line in table(measures(), FRESH):
        print(line, flush=True)
