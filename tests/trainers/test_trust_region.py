"""TRPO's step: the solver, the natural gradient of a bandit, the bound after every step, and bits that come back."""

import copy
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference_trpo
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_update import exact_model, sampled_trees, settings_of
from torch import Tensor
from transformers import PreTrainedModel
from tree_cases import tiny_model

import agentrl.trainers.trust_region_update as update_module
from agentrl.errors import ConfigError, PolicyError
from agentrl.trainers import RECIPES, Clip, GroupNormalized, Recipe
from agentrl.trainers.conjugate_gradient import conjugate_gradient
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.trust_region import TrustRegion, distribution_kl, trust_region_step
from agentrl.trainers.trust_region_update import TrustRegionUpdater
from agentrl.trajectory import Tree

F64 = torch.float64

# Conjugate gradients --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_conjugate_gradients_equal_a_dense_solve(size: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=draw, dtype=F64)
    matrix = root @ root.T + 0.1 * torch.eye(size, dtype=F64)
    b = torch.randn(size, generator=draw, dtype=F64)
    given_x = conjugate_gradient(lambda v: matrix @ v, b, iterations=4 * size, tolerance=1e-26)
    torch.testing.assert_close(given_x, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-6)


def test_conjugate_gradients_stop_in_time() -> None:
    """Two distinct eigenvalues need two products, a solved equation none, and a bound on the iterations holds."""
    calls: list[int] = []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=F64) * v

    b = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    x = conjugate_gradient(product, b, iterations=10)
    assert len(calls) == 2
    torch.testing.assert_close(x, torch.tensor([1.0, -2.0, 0.5 / 3, 1.0], dtype=F64), rtol=0, atol=1e-12)
    conjugate_gradient(product, b, iterations=1)
    conjugate_gradient(product, torch.zeros(4, dtype=F64), iterations=10)
    assert len(calls) == 3
    assert conjugate_gradient(lambda v: -v, b, iterations=5).tolist() == [0.0] * 4  # not positive definite


# A bandit, where everything is known ----------------------------------------------------------------------------------


class Bandit:
    """A softmax over arms; the surrogate is the expected reward, split into terms as micro-batches would."""

    def __init__(self, logits: list[float], rewards: list[float]) -> None:
        self.logits = torch.tensor(logits, dtype=F64, requires_grad=True)
        self.rewards = torch.tensor(rewards, dtype=F64)
        self.old = torch.log_softmax(self.logits.detach(), dim=-1)

    def evaluate(self) -> Iterable[tuple[Tensor, Tensor]]:
        for half in (slice(0, 2), slice(2, 4)):
            new = torch.log_softmax(self.logits, dim=-1)
            yield -(new.exp() * self.rewards)[half].sum(), distribution_kl(self.old[None], new[None])[0] / 2


@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_on_a_bandit_the_step_is_the_natural_gradient(damping: float) -> None:
    """Fisher's matrix of a softmax is diag(p) - p p^T, the gradient of the expected reward p_i (r_i - p.r)."""
    bandit = Bandit([0.3, -0.2, 0.0, 0.5], [1.0, 0.0, 0.3, -0.5])
    p, r = bandit.old.exp().numpy(), bandit.rewards.numpy()
    fisher = np.diag(p) - np.outer(p, p)
    gradient = p * (r - p @ r)
    start = bandit.logits.detach().clone()
    region = TrustRegion(max_kl=1e-4, damping=damping, cg_iterations=50)
    report = trust_region_step([bandit.logits], bandit.evaluate, region)
    assert report.fraction == 1.0
    moved = (bandit.logits.detach() - start).numpy()
    x = np.linalg.solve(fisher + damping * np.eye(4), gradient)
    expected = x * math.sqrt(2e-4 / (x @ (fisher + damping * np.eye(4)) @ x))
    assert moved == pytest.approx(expected, abs=1e-8)
    assert moved == pytest.approx(
        reference_trpo.natural_step(fisher.tolist(), gradient.tolist(), delta=1e-4, damping=damping), abs=1e-8
    )
    assert report.grad_norm == pytest.approx(float(np.linalg.norm(gradient)), abs=1e-12)
    assert not np.allclose(moved / np.linalg.norm(moved), gradient / np.linalg.norm(gradient), atol=1e-3)


def test_almost_undamped_the_step_uses_the_bound_up() -> None:
    bandit = Bandit([0.3, -0.2, 0.0, 0.5], [1.0, 0.0, 0.3, -0.5])
    report = trust_region_step([bandit.logits], bandit.evaluate, TrustRegion(max_kl=1e-6, damping=1e-9))
    assert report.kl == pytest.approx(report.fraction**2 * 1e-6, rel=0.01)  # quadratic in the length of the step
    assert report.fraction >= 0.8
    assert report.kl <= 1e-6


@pytest.mark.parametrize("max_kl", [1e-3, 0.1, 3.0])
def test_a_step_that_goes_too_far_is_shortened(max_kl: float) -> None:
    bandit = Bandit([2.0, -2.0, 0.0, 0.5], [-1.0, 1.0, 0.3, -0.5])
    before = float(bandit.old.exp() @ bandit.rewards)
    region = TrustRegion(max_kl=max_kl, damping=1e-6, backtracks=60)
    report = trust_region_step([bandit.logits], bandit.evaluate, region)
    new = torch.log_softmax(bandit.logits.detach(), dim=-1)
    assert 0 < report.kl <= max_kl
    assert report.kl == pytest.approx(float(distribution_kl(bandit.old, new)), abs=1e-12)
    assert report.gain == pytest.approx(float(new.exp() @ bandit.rewards) - before, abs=1e-12)
    assert report.gain > 0
    if max_kl == 3.0:
        assert report.fraction < 1.0
        assert math.log(report.fraction) / math.log(0.8) == pytest.approx(round(math.log(report.fraction, 0.8)))


class Worse(Bandit):
    """Every step away from the start looks worse than its gradient promises."""

    def evaluate(self) -> Iterable[tuple[Tensor, Tensor]]:
        moved = not torch.equal(torch.log_softmax(self.logits.detach(), dim=-1), self.old)
        yield from ((loss + float(moved), kl) for loss, kl in super().evaluate())


class Farther(Bandit):
    """Every step away from the start leaves the trust region."""

    def evaluate(self) -> Iterable[tuple[Tensor, Tensor]]:
        moved = not torch.equal(torch.log_softmax(self.logits.detach(), dim=-1), self.old)
        yield from ((loss, kl + float(moved)) for loss, kl in super().evaluate())


class Broken(Bandit):
    """Every step away from the start is not a number."""

    def evaluate(self) -> Iterable[tuple[Tensor, Tensor]]:
        moved = not torch.equal(torch.log_softmax(self.logits.detach(), dim=-1), self.old)
        yield from ((loss, kl * (math.nan if moved else 1.0)) for loss, kl in super().evaluate())


@pytest.mark.parametrize("kind", [Worse, Farther, Broken])
def test_a_rejected_step_leaves_the_very_bits(kind: type[Bandit]) -> None:
    bandit = kind([0.3, -0.2, 0.1, 1e-30], [1.0, 0.0, 0.3, -0.5])
    start = bandit.logits.detach().clone()
    report = trust_region_step([bandit.logits], bandit.evaluate, TrustRegion(damping=1e-3))
    assert torch.equal(bandit.logits.detach(), start)
    assert (report.fraction, report.kl, report.gain) == (0.0, 0.0, 0.0)
    assert bandit.logits.requires_grad


def test_without_advantages_nothing_moves() -> None:
    bandit = Bandit([0.3, -0.2, 0.1, 0.0], [0.0] * 4)
    start = bandit.logits.detach().clone()
    assert trust_region_step([bandit.logits], bandit.evaluate, TrustRegion()).fraction == 0.0
    assert torch.equal(bandit.logits.detach(), start)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    bandit = Bandit([0.3, -0.2, 0.1, 0.0], [math.nan] * 4)
    start = bandit.logits.detach().clone()
    with pytest.raises(PolicyError, match="gradient norm is nan: no step was made"):
        trust_region_step([bandit.logits], bandit.evaluate, TrustRegion())
    assert torch.equal(bandit.logits.detach(), start)


# Language models ------------------------------------------------------------------------------------------------------

TRPO = RECIPES["trpo"]
assert isinstance(TRPO, Recipe)
WITHOUT_CRITIC = replace(TRPO, advantage=GroupNormalized())


def learner(model: PreTrainedModel, recipe: Recipe = WITHOUT_CRITIC, **changes: Any) -> TrustRegionUpdater:
    temperature = changes.pop("temperature", 1.0)
    return TrustRegionUpdater(
        recipe, settings_of(**changes), TokenScorer(model), temperature=temperature, total_updates=10
    )


@torch.no_grad()
def plain_kl(old: PreTrainedModel, new: PreTrainedModel, trees: list[Tree], temperature: float) -> float:
    """Mean over the sampled tokens of all trajectories, one after the other, of KL(old || new) of whole softmaxes."""
    total, count = 0.0, 0
    for tree in trees:
        for leaf in tree.valid_leaves:
            ids = torch.tensor([tree.token_ids(leaf.segment)])
            mask = [bool(m) for segment in tree.path(leaf.segment) for m in segment.action_mask][1:]
            p, q = (torch.log_softmax(m(ids).logits[0, :-1].double() / temperature, dim=-1) for m in (old, new))
            kl = (p.exp() * (p - q)).sum(dim=-1)[torch.tensor(mask)]
            total, count = total + float(kl.sum()), count + len(kl)
    return total / count


@pytest.mark.parametrize(("family", "temperature"), [("llama", 1.0), ("gpt2", 0.7), ("qwen3", 1.0)])
def test_the_bound_holds_after_every_step(family: str, temperature: float) -> None:
    """Little damping, so that full steps come close to the bound."""
    region = TrustRegion(max_kl=0.02, damping=1e-3, cg_iterations=3)
    model = tiny_model(family)
    trees = sampled_trees(model, [1, 2, 3], temperature=temperature, noise=0.0)
    steps = learner(model, replace(WITHOUT_CRITIC, trust_region=region), temperature=temperature)
    taken = []
    for number in range(2):
        before = copy.deepcopy(model)
        metrics = steps.update(trees, number=number, seed=0)
        kl = plain_kl(before, model, trees, temperature)
        assert kl <= 0.02 * (1 + 1e-5)
        assert metrics["kl_old"] == pytest.approx(kl, rel=1e-3)
        taken.append(metrics["step_fraction"])
        assert (metrics["surrogate_gain"] > 0) == (metrics["step_fraction"] > 0)
    assert max(taken) > 0


def test_micro_batches_do_not_change_the_step() -> None:
    results = []
    for tokens in (10**6, 1):
        model = exact_model()
        trees = sampled_trees(model, [5, 6, 7], noise=0.0)
        metrics = learner(model, max_tokens_per_micro_batch=tokens).update(trees, number=0, seed=0)
        results.append((metrics, torch.cat([p.detach().flatten() for p in model.parameters()])))
    (whole, one), (split, several) = results
    assert split == pytest.approx(whole, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(several, one, rtol=0, atol=1e-8)


def test_a_rejected_step_leaves_the_model_as_it_was() -> None:
    """A bound below the rounding of the KL; epochs, mini-batches and the learning rate play no part."""
    model = tiny_model()
    recipe = replace(WITHOUT_CRITIC, trust_region=TrustRegion(max_kl=1e-30, backtracks=1))
    before = copy.deepcopy(model.state_dict())
    metrics = learner(model, recipe, epochs=3, mini_batches=2).update(
        sampled_trees(model, [1, 2], noise=0.0), number=0, seed=0
    )
    assert metrics["step_fraction"] == 0.0
    assert metrics["kl_old"] == 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sixteen_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"16-bit weights round away\. Set model\.dtype=float32"):
        learner(tiny_model(dtype=torch.bfloat16))


def test_distributions_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(update_module, "MAX_PROBABILITIES", 100)
    with pytest.raises(ConfigError, match=r"vocabulary of 61\. Lower rollout\.tasks_per_update or group\.size"):
        learner(model).update(sampled_trees(model, [1]), number=0, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [{"max_kl": 0.0}, {"cg_iterations": 0}, {"damping": -1.0}, {"backtracks": -1}, {"backtrack_factor": 1.0}],
    ids=str,
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TrustRegion(**wrong)


class FittedClip(Clip):
    """Stands for a surrogate that is decided anew for every step."""

    @property
    def needs_fit(self) -> bool:
        return True


def test_a_fitted_surrogate_is_refused() -> None:
    with pytest.raises(ConfigError, match="line search needs one surrogate"):
        replace(WITHOUT_CRITIC, surrogate=FittedClip())


def test_what_a_trust_region_implies() -> None:
    assert TRPO.needs_old_logprobs
    assert not TRPO.allows_replay
    assert not replace(TRPO, trust_region=None).needs_old_logprobs
