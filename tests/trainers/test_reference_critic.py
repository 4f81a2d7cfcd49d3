"""PPO and TRPO against plain-Python references written from their papers: values and gradients on random batches."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import reference_ppo
import reference_trpo
import torch
from path_cases import Case
from step_cases import StepCase, make_step_case, rows_of
from torch import Tensor

from agentrl.trainers import RECIPES, Clip, Recipe
from agentrl.trainers.gae import GAE
from agentrl.trainers.masking import zero_outside
from agentrl.trainers.objective import assign_credit, compute_weights, gather_feedback, policy_loss
from agentrl.trainers.trust_region import distribution_kl
from agentrl.trainers.value_loss import ValueLoss

TOLERANCE = 1e-6
SEEDS = range(6)
STEP = 1e-6
VOCAB = 5
F64 = torch.float64


def ppo(**changes: object) -> Recipe:
    recipe = RECIPES["ppo"]
    assert isinstance(recipe, Recipe)
    return replace(recipe, **changes)  # type: ignore[arg-type]


TRPO = RECIPES["trpo"]
assert isinstance(TRPO, Recipe)
KL = ppo().kl
assert KL is not None

# Recipe, then the options of the reference.
PPO_PAIRS = [
    pytest.param(ppo(), {"gamma": 1.0, "lam": 1.0, "beta": 0.001}, id="ppo"),
    pytest.param(
        ppo(kl=replace(KL, coef=0.2), advantage=GAE(gamma=0.9, lam=0.7)),
        {"gamma": 0.9, "lam": 0.7, "beta": 0.2},
        id="gamma-lambda",
    ),
    pytest.param(
        ppo(kl=None, surrogate=Clip(dual=3.0), advantage=GAE(gamma=0.99, lam=0.95)),
        {"gamma": 0.99, "lam": 0.95, "dual_clip": 3.0},
        id="dual-clip",
    ),
    pytest.param(
        replace(TRPO, advantage=GAE(gamma=1.0, lam=0.95)), {"gamma": 1.0, "lam": 0.95, "clip": math.inf}, id="trpo"
    ),
]


def values_of(case: Case, shift: float = 0.0) -> list[float]:
    """One per token id; of both signs."""
    return [math.sin(3.0 * token + 1.0) + shift * math.cos(7.0 * token) for token in range(len(case.new))]


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=F64)


def slopes(loss: Callable[[list[float]], float], point: list[float]) -> list[float]:
    """Central differences."""
    moved = [[x + sign * STEP * (i == j) for i, x in enumerate(point)] for j in range(len(point)) for sign in (1, -1)]
    return [(loss(up) - loss(down)) / (2 * STEP) for up, down in zip(moved[::2], moved[1::2], strict=True)]


def credit(recipe: Recipe, made: StepCase) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, from values and log-probabilities with garbage outside the mask."""
    case = made.case
    feedback = gather_feedback(
        recipe,
        case.batch,
        old_logprobs=case.gather(tensor(case.old)),
        ref_logprobs=case.gather(tensor(case.ref)),
        values=case.gather(tensor(values_of(case))),
    )
    return assign_credit(recipe, feedback), recipe.advantage.value_targets(feedback)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("recipe", "options"), PPO_PAIRS)
def test_the_policy_loss_equals_the_reference(recipe: Recipe, options: dict[str, float], seed: int) -> None:
    made = make_step_case(seed)
    case = made.case

    def reference(new: list[float]) -> float:
        return reference_ppo.loss(
            case.paths, made.turns, made.turn_rewards, values_of(case), new, case.old, case.ref, **options
        )

    ids = tensor(case.new).requires_grad_()
    logprobs = case.gather(ids)
    logprobs.retain_grad()
    loss, _ = policy_loss(
        recipe,
        case.batch,
        logprobs,
        old_logprobs=case.gather(tensor(case.old)),
        ref_logprobs=case.gather(tensor(case.ref)) if recipe.needs_reference else None,
        advantages=credit(recipe, made)[0],
        weights=compute_weights(recipe, case.batch),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(reference(case.new), abs=TOLERANCE)
    assert ids.grad is not None
    assert ids.grad.tolist() == pytest.approx(slopes(reference, case.new), abs=TOLERANCE)
    assert logprobs.grad is not None
    assert (logprobs.grad[~case.batch.mask] == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("recipe", "options"), PPO_PAIRS)
def test_the_targets_equal_the_reference(recipe: Recipe, options: dict[str, float], seed: int) -> None:
    made = make_step_case(seed)
    case, values = made.case, values_of(made.case)
    known = {name: value for name, value in options.items() if name in ("gamma", "lam", "beta")}
    raw = reference_ppo.raw_advantages(case.paths, made.turns, made.turn_rewards, values, case.old, case.ref, **known)
    for given, expected in zip(
        rows_of(credit(recipe, made)[1], case), reference_ppo.returns(case.paths, raw, values), strict=True
    ):
        assert given == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("shift", [0.05, 1.5])
@pytest.mark.parametrize("clip", [0.5, 1e-2, math.inf])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_value_loss_equals_the_reference(seed: int, clip: float, shift: float) -> None:
    """Some values moved less than the clip, others further, towards the target and away from it."""
    made = make_step_case(seed)
    case, old = made.case, values_of(made.case)
    recipe = ppo()
    targets = credit(recipe, made)[1]

    def reference(new: list[float]) -> float:
        return reference_ppo.value_loss(case.paths, rows_of(targets, case), new, old, clip=clip)

    new = values_of(case, shift)
    ids = tensor(new).requires_grad_()
    values = case.gather(ids)
    values.retain_grad()
    garbled = torch.where(case.batch.mask, targets, case.garbage)
    loss_of = ValueLoss(clip=None if clip == math.inf else clip)
    losses, metrics = loss_of(values, case.gather(tensor(old)), garbled, case.batch.mask)
    loss = (losses * compute_weights(recipe, case.batch)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(reference(new), abs=TOLERANCE)
    assert ids.grad is not None
    assert ids.grad.tolist() == pytest.approx(slopes(reference, new), abs=TOLERANCE)
    assert values.grad is not None
    assert (values.grad[~case.batch.mask] == 0).all()
    if shift == 1.5 and clip < 1:
        assert 0 < metrics["value_clip_fraction"][case.batch.mask].mean() < 1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_divergence_equals_the_reference(seed: int) -> None:
    """Whole distributions, one of them without some tokens."""
    case = make_step_case(seed).case
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, len(case.new), VOCAB, generator=draw, dtype=F64)
    logits[:, 0, 0] = -math.inf
    logits[0, 1, 1] = -math.inf
    old = torch.log_softmax(logits[0], dim=-1)
    raw = logits[1].requires_grad_()
    new = torch.log_softmax(raw, dim=-1)
    weights = compute_weights(TRPO, case.batch)  # type: ignore[arg-type]
    kl = (zero_outside(case.gather(distribution_kl(old, new)), case.batch.mask) * weights).sum()
    assert float(kl.detach()) == pytest.approx(
        reference_trpo.mean_kl(case.paths, old.tolist(), new.tolist()), abs=TOLERANCE
    )
    kl.backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()


def test_references_can_tell_a_wrong_recipe() -> None:
    """Negative control: lambda off by 0.01 is seen, and so is a target formed after whitening."""
    made = make_step_case(1)
    case = made.case
    rows = reference_ppo.advantages(
        case.paths, made.turns, made.turn_rewards, values_of(case), case.old, case.ref, gamma=1.0, lam=0.95
    )
    right, wrong = (rows_of(credit(ppo(kl=None, advantage=GAE(lam=lam)), made)[0], case) for lam in (0.95, 0.94))

    def deviation(given: list[list[float]]) -> float:
        return max(abs(a - b) for x, y in zip(given, rows, strict=True) for a, b in zip(x, y, strict=True))

    assert deviation(right) <= TOLERANCE
    assert deviation(wrong) > 100 * TOLERANCE
