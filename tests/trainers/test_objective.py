"""From a recipe and tensors to a loss: KL in the reward, masks, metrics, what parts get to see, checks.

What may not change the loss of any recipe is in `test_metamorphic`, what it must equal in `test_equivalences`.
"""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from path_cases import Case, make_batch, make_case
from torch import Tensor

from agentrl.trainers import (
    RECIPES,
    KLEstimator,
    KLPenalty,
    KLPlace,
    RatioLevel,
    Recipe,
    Surrogate,
    SurrogateInputs,
    TokenLoss,
    lay_out_paths,
)
from agentrl.trainers.advantages import mean_over_shared
from agentrl.trainers.objective import (
    Metrics,
    compute_advantages,
    compute_weights,
    loss_mask,
    policy_loss,
)
from agentrl.trajectory import Leaf, StopReason, Tree

F64 = torch.float64


class Rows:
    """The tensors of a case that have a row per trajectory; `gradient` is by position."""

    def __init__(self, recipe: Recipe, case: Case) -> None:
        self.batch = case.batch
        self.logprobs, self.old, self.ref = (
            case.gather(torch.tensor(values, dtype=F64)) for values in (case.new, case.old, case.ref)
        )
        self.advantages = compute_advantages(recipe, case.batch)
        self.weights = compute_weights(recipe, case.batch)

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
