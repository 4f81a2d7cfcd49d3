"""The table of recipes, its decorator, and recipes and parts that a user adds."""

import inspect
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass, fields, replace

import pytest
import torch
from path_cases import make_batch
from recipe_table import NEEDS, PAPERS, TABLE
from torch import Tensor

import agentrl.trainers
from agentrl.errors import ConfigError, UnknownNameError
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers import (
    RECIPES,
    Advantage,
    Clip,
    DropConstantRewards,
    Feedback,
    GroupCentered,
    KLEstimator,
    KLPenalty,
    OverlongPenalty,
    RatioLevel,
    Recipe,
    SharedMean,
    Surrogate,
    SurrogateInputs,
    TokenLoss,
    ValueLoss,
    compute_advantages,
    compute_weights,
    policy_loss,
)
from agentrl.trainers.recipe import recipe
from agentrl.trainers.recipes.dapo import dapo
from agentrl.trainers.recipes.grpo import grpo

F64 = torch.float64


@pytest.mark.parametrize("name", list(TABLE))
def test_the_vetted_settings_do_not_drift(name: str) -> None:
    entry = RECIPES[name]
    assert type(entry) is type(TABLE[name])
    for part in fields(entry):
        if part.name != "idea":
            assert getattr(entry, part.name) == getattr(TABLE[name], part.name), part.name
    assert entry.idea
    assert set(entry.needs) == NEEDS.get(name, set())


def test_all_recipes_are_in_the_table_and_pickle() -> None:
    assert set(RECIPES) == set(TABLE) == set(PAPERS)
    assert set(NEEDS) <= set(TABLE)
    for entry in RECIPES.values():
        assert pickle.loads(pickle.dumps(entry)) == entry
    with pytest.raises(UnknownNameError, match="Did you mean 'grpo'"):
        RECIPES["grpoo"]


def test_groups_too_small_to_compare_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'grpo' compares .* at least 2, got sampling\.size=1"):
        replace(grpo(), sampling=GroupPlan(size=1))
    with pytest.raises(ConfigError, match="at least 2"):
        replace(grpo(), sampling=GroupPlan(size=1), advantage=Outcome(), group_filter=DropConstantRewards())
    assert replace(grpo(), sampling=GroupPlan(size=1), advantage=Outcome()).sampling.size == 1


def test_the_decorator_wants_matching_names() -> None:
    with pytest.raises(ConfigError, match="'mislabeled' returns a recipe named 'grpo'; set name='mislabeled'"):

        @recipe
        def mislabeled() -> Recipe:
            return replace(grpo(), kl=None)

    with pytest.raises(ConfigError, match="recipe 'grpo' exists already"):
        recipe(lookalike)


def lookalike() -> Recipe:
    return replace(grpo(), kl=None)


lookalike.__name__ = "grpo"


def user_recipe() -> Recipe:
    """DAPO's clip and token mean on a branching group, with centered advantages."""
    return replace(
        dapo(),
        name="user_recipe",
        idea="DAPO on ARPO's tree",
        sampling=GroupPlan(size=12, initial=6, rule=BranchRule.TOP_ENTROPY),
        advantage=SharedMean(GroupCentered()),
        shaping=(OverlongPenalty(max_length=512, cache=128),),
        kl=KLPenalty(coef=0.01, estimator=KLEstimator.K2),
    )


def test_a_recipe_of_ones_own_takes_15_lines_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(inspect.getsource(user_recipe).splitlines()) <= 15
    monkeypatch.setattr(RECIPES, "_entries", dict(RECIPES))  # leave the table as it was
    assert recipe(user_recipe) is user_recipe
    batch = make_batch([2, 2], [1.0, 0.0], token_index=[[0, 1], [0, 2]])
    entry = RECIPES["user_recipe"]
    advantages = compute_advantages(entry, batch)
    assert advantages.tolist() == [[0.0, 0.5], [0.0, -0.5]]  # the shared token: (.5 - .5) / 2
    new = torch.full((2, 2), math.log(1.5), dtype=F64)
    loss, _ = policy_loss(
        entry,
        batch,
        new,
        old_logprobs=torch.zeros_like(new),
        ref_logprobs=torch.zeros_like(new),
        advantages=advantages,
        weights=compute_weights(entry, batch),
    )
    # (-1.28 * .5 + 1.5 * .5) / 4 = .0275; penalty .01 * log(1.5)^2 / 2 = .01 * .0822009767
    assert loss.item() == pytest.approx(0.0275 + 0.000822009767, abs=1e-9)


# Parts of algorithms that do not come with the package, to show that they fit in from outside.


@dataclass(frozen=True)
class Outcome(Advantage):
    """REINFORCE without a baseline."""

    def __call__(self, feedback: Feedback) -> Tensor:
        return feedback.returns[:, None].expand(feedback.batch.mask.shape)


@dataclass(frozen=True)
class Values(Outcome):
    """Something that reads a critic."""

    @property
    def needs_critic(self) -> bool:
        return True


@dataclass(frozen=True)
class GeometricMean(RatioLevel):
    """GSPO: exp of the mean log-ratio of the sequence, arXiv:2507.18071."""

    def __call__(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return mean.expand(mask.shape)


@dataclass(frozen=True)
class SoftGate(Surrogate):
    """SAPO: -4 / tau * sigmoid(tau (r - 1)) A, arXiv:2511.20347."""

    def __call__(self, inputs: SurrogateInputs) -> TokenLoss:
        tau = torch.where(inputs.advantages > 0, 1.0, 1.05)
        gate = torch.sigmoid(tau * (inputs.log_ratio.exp() - 1)) * 4 / tau
        return TokenLoss(-gate * inputs.advantages, {"gate": gate})


def one_step(entry: Recipe, log_ratio: Tensor, advantages: Tensor) -> tuple[float, Tensor, dict[str, Tensor]]:
    batch = make_batch([log_ratio.shape[1]] * len(log_ratio), [0.0] * len(log_ratio))
    leaf = log_ratio.clone().requires_grad_()
    loss, metrics = policy_loss(
        entry,
        batch,
        leaf,
        old_logprobs=torch.zeros_like(leaf),
        advantages=advantages,
        weights=compute_weights(entry, batch),
    )
    loss.backward()
    assert leaf.grad is not None
    return float(loss.detach()), leaf.grad, metrics


def test_a_sequence_level_ratio_fits_in() -> None:
    entry = replace(grpo(), kl=None, ratio=GeometricMean(), surrogate=Clip(low=3e-4, high=4e-4))
    log_ratio = torch.tensor([[0.1, -0.05, 0.02]], dtype=F64)
    # s = exp(.07 / 3) = 1.023608, clipped at .9997 only for A < 0 below; here A = -1: loss s, gradient s / 3 each
    loss, gradient, _ = one_step(entry, log_ratio, -torch.ones(1, 3, dtype=F64))
    assert loss == pytest.approx(1.023608, abs=5e-7)
    assert gradient[0].tolist() == pytest.approx([1.023608 / 3] * 3, abs=5e-7)
    assert one_step(entry, log_ratio, torch.ones(1, 3, dtype=F64))[0] == pytest.approx(-1.0004, abs=5e-7)


@pytest.mark.parametrize(
    ("ratio", "positive", "negative"),
    [(0.5, -1.510163, 1.415938), (1.0, -2.0, 1.904762), (1.5, -2.489837, 2.393586), (4.0, -3.810297, 3.652986)],
)
def test_a_soft_gate_fits_in(ratio: float, positive: float, negative: float) -> None:
    entry = replace(grpo(), kl=None, surrogate=SoftGate())
    log_ratio = torch.full((1, 1), math.log(ratio), dtype=F64)
    ones = torch.ones(1, 1, dtype=F64)
    loss, _, metrics = one_step(entry, log_ratio, ones)
    assert loss == pytest.approx(positive, abs=1e-6)
    assert metrics["gate"].item() == pytest.approx(-positive, abs=1e-6)
    assert not metrics["gate"].requires_grad
    assert one_step(entry, log_ratio, -ones)[0] == pytest.approx(negative, abs=1e-6)


def test_a_part_can_ask_for_a_critic() -> None:
    critic = replace(grpo(), value_loss=ValueLoss())
    assert replace(critic, advantage=Values()).needs_critic
    assert replace(critic, advantage=SharedMean(Values())).needs_critic
    assert not replace(grpo(), advantage=Outcome()).needs_critic
    with pytest.raises(ConfigError, match=r"'grpo' has an advantage with a critic, Values.*value_loss=ValueLoss\(\)"):
        replace(grpo(), advantage=Values())


def test_the_package_loads_torch_only_on_use() -> None:
    code = "import sys, agentrl.trainers as t; assert 'torch' not in sys.modules; t.Clip; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in agentrl.trainers.__all__:
        assert getattr(agentrl.trainers, name).__class__ is not None
    with pytest.raises(AttributeError, match="has no attribute 'Clips'"):
        agentrl.trainers.Clips  # noqa: B018
