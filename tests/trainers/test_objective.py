"""Relations that the loss of every recipe must satisfy: what may not change it, and what it must equal."""

import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from path_cases import Case, make_batch, make_case
from torch import Tensor

from agentrl.trainers import (
    RECIPES,
    Clip,
    KLEstimator,
    KLPenalty,
    KLPlace,
    PathBatch,
    RatioLevel,
    Recipe,
    Surrogate,
    SurrogateInputs,
    TokenLoss,
    TokenMean,
    lay_out_paths,
)
from agentrl.trainers.advantages import mean_over_shared
from agentrl.trainers.objective import (
    Metrics,
    average_metrics,
    compute_advantages,
    compute_weights,
    loss_mask,
    policy_loss,
)
from agentrl.trajectory import Leaf, StopReason, Tree

F64 = torch.float64
ROUNDING = 1e-12
recipes = pytest.mark.parametrize("recipe", [*RECIPES.values(), replace(RECIPES["dapo"], mask_truncated=True)])


class Rows:
    """The tensors of a case that have a row per trajectory; `gradient` is by position."""

    def __init__(self, recipe: Recipe, case: Case) -> None:
        self.batch = case.batch
        self.logprobs, self.old, self.ref = (
            case.gather(torch.tensor(values, dtype=F64)) for values in (case.new, case.old, case.ref)
        )
        self.advantages = compute_advantages(recipe, case.batch)
        self.weights = compute_weights(recipe, case.batch)

    def take(self, rows: Tensor) -> "Rows":
        taken = object.__new__(Rows)
        taken.batch = self.batch.rows(rows)
        for name in ("logprobs", "old", "ref", "advantages", "weights"):
            setattr(taken, name, getattr(self, name)[rows])
        return taken

    def loss(self, recipe: Recipe) -> tuple[float, Tensor, Metrics]:
        logprobs = self.logprobs.clone().requires_grad_()
        loss, metrics = policy_loss(
            recipe,
            self.batch,
            logprobs,
            old_logprobs=self.old,
            ref_logprobs=self.ref,
            advantages=self.advantages,
            weights=self.weights,
        )
        loss.backward()
        assert logprobs.grad is not None
        return float(loss.detach()), logprobs.grad, metrics


@recipes
@pytest.mark.parametrize("seed", range(3))
def test_order_of_trajectories_does_not_matter(recipe: Recipe, seed: int) -> None:
    case = make_case(seed)
    order = torch.randperm(len(case.paths), generator=torch.Generator().manual_seed(seed))
    loss, gradient, _ = Rows(recipe, case).loss(recipe)
    case.batch, case.garbage = case.batch.rows(order), case.garbage[order]
    permuted_loss, permuted_gradient, _ = Rows(recipe, case).loss(recipe)
    assert permuted_loss == pytest.approx(loss, abs=ROUNDING)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=0, atol=ROUNDING)


@recipes
@pytest.mark.parametrize("seed", range(3))
def test_padding_does_not_matter(recipe: Recipe, seed: int) -> None:
    """Three more columns of garbage, and a trajectory without tokens in a group of its own."""
    case = make_case(seed)
    loss, gradient, _ = Rows(recipe, case).loss(recipe)
    num_rows, num_columns = case.batch.mask.shape
    case.batch = pad(case.batch, num_rows + 1, num_columns + 3)
    wide = torch.full((num_rows + 1, num_columns + 3), math.nan, dtype=F64)
    wide[:num_rows, :num_columns] = case.garbage
    case.garbage = wide
    padded_loss, padded_gradient, _ = Rows(recipe, case).loss(recipe)
    assert padded_loss == pytest.approx(loss, abs=ROUNDING)
    torch.testing.assert_close(padded_gradient[:num_rows, :num_columns], gradient, rtol=0, atol=ROUNDING)
    assert padded_gradient.abs().sum().item() == pytest.approx(gradient.abs().sum().item(), abs=ROUNDING)


def pad(batch: PathBatch, num_rows: int, num_columns: int) -> PathBatch:
    columns = {}
    for field in fields(batch):
        old = getattr(batch, field.name)
        if isinstance(old, Tensor):
            shape = (num_rows, num_columns if old.shape == batch.mask.shape else old.shape[-1])[: old.ndim]
            columns[field.name] = torch.zeros(shape, dtype=old.dtype)
            columns[field.name][tuple(slice(n) for n in old.shape)] = old
    columns["group"][-1] = 99
    return replace(batch, **columns)


@recipes
@pytest.mark.parametrize("sizes", [[1] * 16, [5, 11], [3, 1, 7, 5]])
def test_micro_batches_add_up(recipe: Recipe, sizes: list[int]) -> None:
    whole = Rows(recipe, make_case(5))
    loss, gradient, metrics = whole.loss(recipe)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    parts = [whole.take(rows).loss(recipe) for rows in order.split(sizes)]
    assert sum(part[0] for part in parts) == pytest.approx(loss, abs=ROUNDING)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient[order], rtol=0, atol=ROUNDING)
    expected = average_metrics([metrics])
    assert average_metrics([part[2] for part in parts]) == pytest.approx(expected, abs=1e-9)
    assert expected["num_tokens"] == loss_mask(recipe, whole.batch).sum()


@recipes
def test_weights_of_each_micro_batch_would_not_add_up(recipe: Recipe) -> None:
    """Negative control for the test above: a mean inside every micro-batch is another loss."""
    whole = Rows(recipe, make_case(5))
    total = 0.0
    for rows in torch.arange(16).split([5, 11]):
        part = whole.take(rows)
        part.weights = compute_weights(recipe, part.batch) / 2
        total += part.loss(recipe)[0]
    assert abs(total - whole.loss(recipe)[0]) > 1e-6


@recipes
def test_zero_advantages_leave_only_the_penalty(recipe: Recipe) -> None:
    rows = Rows(recipe, make_case(2))
    rows.advantages = torch.zeros_like(rows.advantages)
    loss, gradient, _ = rows.loss(replace(recipe, kl=None))
    assert loss == 0.0
    assert not gradient.any()
    with_penalty, _, _ = rows.loss(replace(recipe, kl=KLPenalty(coef=0.5)))
    assert with_penalty > 0.0


@pytest.mark.parametrize("name", list(RECIPES))
def test_first_step_without_clip_is_reinforce(name: str) -> None:
    """At pi = pi_old the gradient is that of -sum w A log pi, whatever the bounds."""
    for surrogate in (Clip(low=math.inf, high=math.inf), RECIPES[name].surrogate):
        recipe = replace(RECIPES[name], kl=None, surrogate=surrogate)
        rows = Rows(recipe, make_case(3))
        rows.logprobs = rows.old
        _, gradient, metrics = rows.loss(recipe)
        torch.testing.assert_close(gradient, -(rows.weights * rows.advantages), rtol=0, atol=ROUNDING)
        assert metrics["clip_fraction_low"] == metrics["clip_fraction_high"] == metrics["kl_old"] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_hard_and_soft_agree_only_where_tokens_weigh_the_same(seed: int) -> None:
    """Gradients by token: equal under the token mean without clip, different under GRPO's aggregation."""
    case = make_case(seed)
    differences = []
    for aggregation in (TokenMean(), RECIPES["grpo"].aggregation):
        by_token = []
        for name in ("arpo", "arpo_hard"):
            recipe = replace(RECIPES[name], aggregation=aggregation, surrogate=Clip(low=math.inf, high=math.inf))
            _, gradient, _ = Rows(recipe, case).loss(recipe)
            sums = torch.zeros(len(case.new), dtype=F64)
            by_token.append(sums.index_add(0, case.batch.token_index[case.batch.mask], gradient[case.batch.mask]))
        differences.append((by_token[0] - by_token[1]).abs().max().item())
    assert differences[0] < ROUNDING
    assert differences[1] > 1e-3


def test_kl_in_the_reward_comes_before_the_advantages() -> None:
    recipe = replace(RECIPES["dr_grpo"], kl=KLPenalty(coef=0.5, estimator=KLEstimator.K1, place=KLPlace.REWARD))
    batch = make_batch([2, 1], [1.0, 0.0])
    old = torch.tensor([[-1.0, -1.0], [-1.0, math.nan]], dtype=F64)
    ref = torch.tensor([[-1.4, -0.8], [-1.8, math.inf]], dtype=F64)
    # d = .4, -.2 and .8: returns 1 - .5 * .2 = .9 and 0 - .5 * .8 = -.4, mean .25
    advantages = compute_advantages(recipe, batch, old_logprobs=old, ref_logprobs=ref)
    torch.testing.assert_close(advantages, torch.tensor([[0.65, 0.65], [-0.65, 0.0]], dtype=F64))
    assert recipe.needs_reference
    assert recipe.kl_in_loss is None
    with pytest.raises(ValueError, match="puts KL in the reward: pass old_logprobs and ref_logprobs"):
        compute_advantages(recipe, batch)


def test_metrics_by_hand() -> None:
    """Four tokens, A = 1 on the first trajectory and -1 on the second."""
    batch = make_batch([2, 2], [1.0, 0.0])
    ratios = torch.tensor([[1.0, 2.0], [0.5, 2.0]], dtype=F64)
    _, metrics = policy_loss(
        RECIPES["arpo"],
        batch,
        ratios.log(),
        old_logprobs=torch.zeros(2, 2, dtype=F64),
        ref_logprobs=torch.zeros(2, 2, dtype=F64),
        advantages=torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=F64),
        weights=compute_weights(RECIPES["arpo"], batch),
    )
    assert metrics["clip_fraction_high"] == 0.25  # the 2 with A = 1
    assert metrics["clip_fraction_low"] == 0.25  # the .5 with A = -1
    # KL(old || new), r - 1 - log r: 0, 1 - log 2 twice, -.5 + log 2; log 2 = .69314718
    assert metrics["kl_old"].item() == pytest.approx((2 * (1 - 0.69314718) + (-0.5 + 0.69314718)) / 4, abs=1e-8)
    # KL(new || ref), 1 / r - 1 + log r: 0, -.5 + log 2 twice, 1 - log 2
    assert metrics["kl_reference"].item() == pytest.approx((2 * (-0.5 + 0.69314718) + 1 - 0.69314718) / 4, abs=1e-8)
    assert metrics["num_tokens"] == 4
    assert not any(value.requires_grad for value in metrics.values())


@dataclass(frozen=True)
class Probe(RatioLevel, Surrogate):
    """A ratio level and surrogate that remembers what it was given, as a user's part would see it."""

    seen: list[Tensor]

    def __call__(self, inputs: SurrogateInputs | Tensor, mask: Tensor | None = None) -> TokenLoss | Tensor:
        if isinstance(inputs, Tensor):
            assert mask is not None
            self.seen.append(inputs)
            return inputs.masked_fill(~mask, math.nan)
        self.seen.extend((inputs.log_ratio, inputs.advantages, inputs.logprobs))
        values = inputs.log_ratio.masked_fill(~inputs.mask, math.nan)
        return TokenLoss(values, {"probe": values})


@pytest.mark.parametrize("mask_truncated", [False, True])
def test_parts_never_see_what_lies_outside_the_mask(mask_truncated: bool) -> None:
    """So that a user's part may sum over a row without thinking of the mask; what it leaves there does not matter."""
    probe = Probe([])
    recipe = replace(RECIPES["arpo"], ratio=probe, surrogate=probe, mask_truncated=mask_truncated)
    rows = Rows(recipe, make_case(4))
    rows.advantages = torch.where(rows.batch.mask, rows.advantages, math.nan)
    loss, gradient, metrics = rows.loss(recipe)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()
    assert metrics["probe"].isfinite()
    assert len(probe.seen) == 4
    for tensor in probe.seen:
        assert (tensor[~loss_mask(recipe, rows.batch)] == 0).all()


def test_truncated_trajectories_leave_the_loss_but_not_the_statistics() -> None:
    recipe = replace(RECIPES["dapo"], mask_truncated=True)
    batch = make_batch([2, 2, 2], [1.0, 0.0, 0.0], truncated=[False, True, False])
    weights = compute_weights(recipe, batch)
    assert weights.tolist() == [[0.25] * 2, [0.0] * 2, [0.25] * 2]
    torch.testing.assert_close(compute_advantages(recipe, batch), compute_advantages(RECIPES["dapo"], batch))


def test_a_branched_episode_from_end_to_end_in_float32() -> None:
    """A tree as a rollout leaves it: one turn, a tool result, two second turns; and another sample of the prompt."""
    tree = Tree("task-0")
    tree.add(None, "prompt", 0, [1, 2, 3])
    tree.add(0, "assistant", 0, [4, 5], logprobs=[-1.0, -1.0])
    tree.add(1, "environment", 0, [6, 7, 8])
    for parent, ids in ((2, [9]), (2, [10, 11]), (0, [12, 13, 14])):
        leaf = tree.add(parent, "assistant", 1, ids, logprobs=[-1.0] * len(ids))
        tree.leaves.append(Leaf(leaf.id, StopReason.ANSWERED, reward=float(ids == [9]), success=ids == [9]))
    batch = lay_out_paths([tree])
    advantages = compute_advantages(RECIPES["arpo_hard"], batch)
    # rewards 1 0 0: mean 1/3, std sqrt((4/9 + 1/9 + 1/9) / 2) = .577350, z = 1.154699 and -.577349 with eps 1e-6;
    # the first turn belongs to the first two: (1.154699 - .577349) / 2 = .288675
    expected = [[0.288675, 0.288675, 1.154699, 0], [0.288675, 0.288675, -0.577349, -0.577349], [-0.577349] * 3 + [0]]
    torch.testing.assert_close(advantages, torch.tensor(expected), rtol=0, atol=1e-6)
    weights = compute_weights(RECIPES["arpo_hard"], batch)
    new = batch.logprobs.clone().requires_grad_()
    loss, _ = policy_loss(
        RECIPES["arpo_hard"], batch, new, old_logprobs=batch.logprobs, advantages=advantages, weights=weights
    )
    # rows of 3, 4 and 3 tokens, each a third: -(1.732049 / 3 - .577348 / 4 - 1.732047 / 3) / 3
    assert loss.item() == pytest.approx(0.577348 / 12, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(new.grad, -weights * advantages)


def test_inputs_are_checked() -> None:
    batch = make_batch([2, 1], [1.0, 0.0])
    zeros = torch.zeros(2, 2, dtype=F64)
    with pytest.raises(ValueError, match="'grpo' puts KL in the loss: pass ref_logprobs"):
        policy_loss(RECIPES["grpo"], batch, zeros, old_logprobs=zeros, advantages=zeros, weights=zeros)
    with pytest.raises(ValueError, match=r"weights must have the mask's shape \[2, 2\], got \[1, 2\]"):
        policy_loss(RECIPES["arpo"], batch, zeros, old_logprobs=zeros, advantages=zeros, weights=zeros[:1])
    with pytest.raises(ValueError, match="Rewards must be finite; trajectory 1 has nan"):
        compute_advantages(RECIPES["arpo"], make_batch([2, 1], [1.0, math.nan]))


def test_advantages_carry_no_gradient() -> None:
    batch = make_batch([2, 1], [1.0, 0.0])
    batch = replace(batch, rewards=batch.rewards.requires_grad_())
    assert not compute_advantages(RECIPES["arpo_hard"], batch).requires_grad
    own = torch.ones(batch.mask.shape)
    assert mean_over_shared(own, batch.token_index, batch.mask).tolist() == [[1.0, 1.0], [1.0, 0.0]]
