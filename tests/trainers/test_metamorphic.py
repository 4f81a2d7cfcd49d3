"""What may not change the loss of any on-policy recipe: order, padding, micro-batches, what tools said."""

import math
from dataclasses import fields, replace

import pytest
import torch
from loss_rows import columns_of
from path_cases import Case
from step_cases import make_step_case
from torch import Tensor
from tree_cases import random_tree

from agentrl.trainers import KLPenalty, PathBatch, Recipe, lay_out_paths
from agentrl.trainers.covariance import ClipCov, KLCov
from agentrl.trainers.levels import CorrectionLevel
from agentrl.trainers.objective import (
    Metrics,
    average_metrics,
    compute_advantages,
    compute_weights,
    loss_mask,
    policy_loss,
    surrogate_inputs,
)
from agentrl.trainers.ratios import ProductRatio
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.recipes.dapo import dapo
from agentrl.trainers.recipes.entropy_covariance import clip_cov
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.token_weights import SamplerCorrection, TopEntropy

F64 = torch.float64
ROUNDING = 1e-12
ON_POLICY = {name: entry for name, entry in RECIPES.items() if isinstance(entry, Recipe)}
VARIANTS = {
    **ON_POLICY,
    "dapo, overlong filter": replace(dapo(), mask_truncated=True),
    "clip_cov, several tokens": replace(clip_cov(), surrogate=ClipCov(fraction=0.05)),
    "kl_cov, several tokens": replace(clip_cov(), surrogate=KLCov(fraction=0.1)),
    "grpo, top-entropy tokens": replace(grpo(), token_weights=(TopEntropy(),)),
    **{
        f"grpo, correction by {level}": replace(grpo(), token_weights=(SamplerCorrection(level=level),))
        for level in CorrectionLevel
    },
}
recipes = pytest.mark.parametrize("recipe", list(VARIANTS.values()), ids=list(VARIANTS))


def make_case(seed: int) -> Case:
    """With turns, states and trees."""
    return make_step_case(seed).case


class Rows:
    """The tensors of a case that have a row per trajectory, and the recipe of an optimizer step on them."""

    def __init__(self, recipe: Recipe, case: Case) -> None:
        self.batch = case.batch
        self.logprobs, self.old, self.ref = map(case.column, (case.new, case.old, case.ref))
        self.advantages = compute_advantages(recipe, case.batch, **columns_of(recipe, case))
        self.weights = compute_weights(recipe, case.batch, old_logprobs=self.old)
        self.rows = torch.arange(len(case.paths))
        self.recipe = self.fitted(recipe)

    def fitted(self, recipe: Recipe) -> Recipe:
        if not recipe.surrogate.needs_fit:
            return recipe
        inputs = surrogate_inputs(
            recipe, self.batch, self.logprobs, old_logprobs=self.old, advantages=self.advantages, seed=1
        )
        return replace(recipe, surrogate=recipe.surrogate.fit(inputs))

    def take(self, rows: Tensor) -> "Rows":
        taken = object.__new__(Rows)
        taken.batch, taken.recipe = self.batch.rows(rows), self.recipe
        for name in ("logprobs", "old", "ref", "advantages", "weights", "rows"):
            setattr(taken, name, getattr(self, name)[rows])
        return taken

    def loss(self) -> tuple[float, Tensor, Metrics]:
        """Loss, gradient by position, metrics."""
        logprobs = self.logprobs.clone().requires_grad_()
        loss, metrics = policy_loss(
            self.recipe,
            self.batch,
            logprobs,
            old_logprobs=self.old,
            ref_logprobs=self.ref,
            advantages=self.advantages,
            weights=self.weights,
            rows=self.rows,
            seed=1,
        )
        loss.backward()
        assert logprobs.grad is not None
        return float(loss.detach()), logprobs.grad, metrics


@recipes
@pytest.mark.parametrize("seed", range(3))
def test_order_of_trajectories_does_not_matter(recipe: Recipe, seed: int) -> None:
    if isinstance(recipe.surrogate, ClipCov):
        recipe = replace(recipe, surrogate=ClipCov(fraction=1.0))  # a draw among candidates depends on their order
    case = make_case(seed)
    order = torch.randperm(len(case.paths), generator=torch.Generator().manual_seed(seed))
    loss, gradient, _ = Rows(recipe, case).loss()
    case.batch, case.garbage = case.batch.rows(order), case.garbage[order]
    permuted_loss, permuted_gradient, _ = Rows(recipe, case).loss()
    assert permuted_loss == pytest.approx(loss, abs=ROUNDING)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=0, atol=ROUNDING)
    assert gradient.any()


@recipes
@pytest.mark.parametrize("seed", range(3))
def test_padding_does_not_matter(recipe: Recipe, seed: int) -> None:
    """Three more columns of garbage, and a row without tokens for every trajectory that has none."""
    case = make_case(seed)
    loss, gradient, _ = Rows(recipe, case).loss()
    num_columns = case.batch.mask.shape[1]
    case.batch = widened(case.batch, num_columns + 3)
    case.garbage = torch.nn.functional.pad(case.garbage, (0, 3), value=math.nan)
    padded_loss, padded_gradient, _ = Rows(recipe, case).loss()
    assert padded_loss == pytest.approx(loss, abs=ROUNDING)
    torch.testing.assert_close(padded_gradient[:, :num_columns], gradient, rtol=0, atol=ROUNDING)
    assert not padded_gradient[:, num_columns:].any()


def widened(batch: PathBatch, num_columns: int) -> PathBatch:
    """With NaN, or 7 where there is none, in the new columns."""
    extra = num_columns - batch.mask.shape[1]
    changed = {}
    for field in fields(batch):
        column = getattr(batch, field.name)
        if isinstance(column, Tensor) and column.shape == batch.mask.shape:
            filling = False if column.dtype == torch.bool else math.nan if column.is_floating_point() else 7
            changed[field.name] = torch.nn.functional.pad(column, (0, extra), value=filling)
    return replace(batch, **changed)


def joined(batch: PathBatch, other: PathBatch) -> PathBatch:
    """The rows of both."""
    columns = {field.name: (getattr(batch, field.name), getattr(other, field.name)) for field in fields(batch)}
    return replace(batch, **{name: torch.cat(pair) for name, pair in columns.items() if isinstance(pair[0], Tensor)})


WITH_THE_BATCH = ("reinforce",)
"""Whose baseline is over all trajectories, one without tokens included."""


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in WITH_THE_BATCH])
def test_a_trajectory_without_tokens_in_a_group_of_its_own_does_not_matter(name: str) -> None:
    case = make_case(1)
    recipe = VARIANTS[name]
    loss, gradient, _ = Rows(recipe, case).loss()
    empty = case.batch.rows(torch.tensor([0]))
    empty = replace(
        empty, mask=torch.zeros_like(empty.mask), group=torch.tensor([99]), states=-torch.ones_like(empty.states)
    )
    case.batch = joined(case.batch, empty)
    case.garbage = torch.cat([case.garbage, torch.full_like(case.garbage[:1], math.nan)])
    case.paths.append([])
    padded_loss, padded_gradient, _ = Rows(recipe, case).loss()
    assert padded_loss == pytest.approx(loss, abs=ROUNDING)
    torch.testing.assert_close(padded_gradient[:-1], gradient, rtol=0, atol=ROUNDING)
    assert not padded_gradient[-1].any()


@recipes
@pytest.mark.parametrize("sizes", [[1] * 16, [5, 11], [3, 1, 7, 5]])
def test_micro_batches_add_up(recipe: Recipe, sizes: list[int]) -> None:
    whole = Rows(recipe, make_case(5))
    loss, gradient, metrics = whole.loss()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    parts = [whole.take(rows).loss() for rows in order.split(sizes)]
    assert sum(part[0] for part in parts) == pytest.approx(loss, abs=ROUNDING)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient[order], rtol=0, atol=ROUNDING)
    expected = average_metrics([metrics])
    # The metrics of surrogates are float32.
    assert average_metrics([part[2] for part in parts]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert expected["num_tokens"] == loss_mask(recipe, whole.batch).sum()


@recipes
def test_weights_of_each_micro_batch_would_not_add_up(recipe: Recipe) -> None:
    """Negative control for the test above: a mean inside every micro-batch is another loss."""
    whole = Rows(recipe, make_case(5))
    total = 0.0
    for rows in torch.arange(16).split([5, 11]):
        part = whole.take(rows)
        part.weights = compute_weights(recipe, part.batch, old_logprobs=part.old) / 2
        total += part.loss()[0]
    assert abs(total - whole.loss()[0]) > 1e-6


@pytest.mark.parametrize("name", ["bapo", "clip_cov, several tokens", "kl_cov, several tokens"])
def test_a_fit_to_each_micro_batch_would_not_add_up(name: str) -> None:
    """Negative control: what is decided over the mini-batch must be decided there."""
    apart = []
    for seed in range(6):
        whole = Rows(VARIANTS[name], make_case(seed))
        total = 0.0
        for rows in torch.arange(16).split([5, 11]):
            part = whole.take(rows)
            part.rows = torch.arange(len(rows))
            part.recipe = part.fitted(VARIANTS[name])
            total += part.loss()[0]
        apart.append(abs(total - whole.loss()[0]))
    assert max(apart) > 1e-6


@recipes
@pytest.mark.parametrize("seed", range(3))
def test_what_stands_outside_the_mask_does_not_matter(recipe: Recipe, seed: int) -> None:
    """Every column of the batch holds garbage there, and other garbage changes nothing: not one bit."""
    case = make_case(seed)
    loss, gradient, _ = Rows(recipe, case).loss()
    generator = torch.Generator().manual_seed(seed)
    mask = case.batch.mask
    changed = {}
    for field in fields(case.batch):
        column = getattr(case.batch, field.name)
        if isinstance(column, Tensor) and column.shape == mask.shape and field.name != "mask":
            noise = torch.randint(0, 5, mask.shape, generator=generator)
            changed[field.name] = torch.where(mask, column, noise.to(column.dtype))
    case.batch = replace(case.batch, **changed)
    case.garbage = case.garbage.flip(0).flip(1)
    other_loss, other_gradient, _ = Rows(recipe, case).loss()
    assert other_loss == loss
    assert torch.equal(other_gradient, gradient)
    assert (gradient[~mask] == 0).all()
    assert gradient.isfinite().all()


def test_tool_tokens_have_no_column() -> None:
    """Whatever is recorded at tokens that the policy did not sample."""
    tree, other = random_tree(3), random_tree(3)
    for segment in other.segments:
        sampled = segment.action_mask
        for values in (segment.logprobs, segment.entropies):
            values[:] = [value if keep else math.nan for value, keep in zip(values, sampled, strict=True)]
    assert any(not all(segment.action_mask) for segment in tree.segments)
    batch, same = lay_out_paths([tree]), lay_out_paths([other])
    for field in fields(batch):
        column = getattr(batch, field.name)
        if isinstance(column, Tensor):
            torch.testing.assert_close(getattr(same, field.name), column, rtol=0, atol=0, equal_nan=True)


@recipes
def test_zero_advantages_leave_only_the_penalty(recipe: Recipe) -> None:
    rows = Rows(recipe, make_case(2))
    rows.advantages = torch.zeros_like(rows.advantages)
    rows.recipe = replace(rows.recipe, kl=None)
    loss, gradient, _ = rows.loss()
    if not isinstance(recipe.surrogate, KLCov):  # has a penalty of its own
        assert loss == 0.0
        assert not gradient.any()
    rows.recipe = replace(rows.recipe, kl=KLPenalty(coef=0.5))
    assert rows.loss()[0] > loss


@recipes
def test_the_first_step_is_reinforce_whatever_the_clip(recipe: Recipe) -> None:
    """At pi = pi_old the gradient is that of -sum w A log pi.

    Except that Clip-Cov drops tokens even then, and that a ratio of joint probabilities counts every token L times,
    which TRL's RLOO makes up for by a mean over tokens, where the paper has their sum.
    """
    case = make_case(3)
    rows = Rows(replace(recipe, kl=None), case.moved(case.old))
    _, gradient, metrics = rows.loss()
    expected = -(rows.weights * rows.advantages)
    if isinstance(recipe.ratio, ProductRatio):
        expected = expected * rows.batch.lengths[:, None]
    if isinstance(rows.recipe.surrogate, ClipCov):
        assert rows.recipe.surrogate.selected is not None
        expected = expected.masked_fill(rows.recipe.surrogate.selected, 0.0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)
    for name in ("clip_fraction_low", "clip_fraction_high", "clip_fraction", "kl_old"):
        assert metrics.get(name, 0.0) == 0.0


@recipes
def test_a_mini_batch_without_a_token_has_no_gradient(recipe: Recipe) -> None:
    """Prompts that left no room for an answer."""
    rows = Rows(recipe, make_case(4))
    rows.batch = replace(rows.batch, mask=torch.zeros_like(rows.batch.mask))
    rows.weights = compute_weights(recipe, rows.batch, old_logprobs=rows.old)
    rows.recipe = rows.fitted(recipe)
    loss, gradient, metrics = rows.loss()
    assert loss == 0.0
    assert not gradient.any()
    assert all(value.isfinite() for value in metrics.values())
