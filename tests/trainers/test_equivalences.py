"""Algorithms that must coincide under some condition, recipe against recipe: the relations of the papers."""

import math
from dataclasses import replace

import pytest
import reference_gpg
import torch
from loss_rows import SEEDS, advantages_of, loss_and_gradients
from path_cases import Case, make_batch, make_case
from reference_tools import gradient as central_differences
from test_reference_entropy import bapo_edges

from agentrl.trainers import (
    Clip,
    Constant,
    DropConstantRewards,
    GroupCentered,
    GroupNormalized,
    Recipe,
    SeqMeanTokenMean,
    SeqMeanTokenSum,
    TokenMean,
    TokenRatio,
)
from agentrl.trainers.adaptive_clip import AdaptiveClip
from agentrl.trainers.entropy_advantages import EntropyAware, entropy_shaped_sequences, entropy_shaped_tokens
from agentrl.trainers.gae import GAE
from agentrl.trainers.ratios import MeanRatio, ProductRatio, SequenceRatio, SequenceTokenRatio
from agentrl.trainers.recipes.aepo import aepo
from agentrl.trainers.recipes.arpo import arpo, arpo_hard
from agentrl.trainers.recipes.cispo import cispo
from agentrl.trainers.recipes.dr_grpo import dr_grpo
from agentrl.trainers.recipes.gmpo import gmpo
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.gspo import gspo, gspo_token
from agentrl.trainers.recipes.gtpo import grpo_s
from agentrl.trainers.recipes.ppo import ppo
from agentrl.trainers.recipes.reinforce import reinforce
from agentrl.trainers.recipes.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from agentrl.trainers.recipes.rloo import rloo
from agentrl.trainers.recipes.sapo import sapo
from agentrl.trainers.soft_surrogates import GeometricClip, GradientPreservingClip, PolicyGradient, SoftGate

F64 = torch.float64
PLAIN = replace(grpo(), kl=None)
UNCLIPPED = Clip(low=math.inf, high=math.inf)
seeds = pytest.mark.parametrize("seed", SEEDS)


def assert_same(first: Recipe, second: Recipe, case: Case, *, value: bool = True) -> None:
    """The same gradient, which is not 0, and unless told otherwise the same value."""
    (one, slope, _), (two, other, _) = (loss_and_gradients(recipe, case) for recipe in (first, second))
    torch.testing.assert_close(slope, other, rtol=0, atol=1e-8)
    assert slope.abs().max() > 1e-4
    if value:
        assert one == pytest.approx(two, abs=1e-7)


def differ(first: Recipe, second: Recipe, case: Case) -> bool:
    """Whether the gradients do: negative control."""
    return bool((loss_and_gradients(first, case)[1] - loss_and_gradients(second, case)[1]).abs().max() > 1e-4)


def on_policy(seed: int) -> Case:
    case = make_case(seed)
    return case.moved(case.old)


def cut(case: Case, length: int) -> Case:
    """Trajectories of `length` tokens; shorter ones lose all of theirs."""
    position = case.batch.mask.cumsum(dim=1)
    enough = case.batch.lengths[:, None] >= length
    case.batch = replace(case.batch, mask=case.batch.mask & (position <= length) & enough)
    case.paths = [path[:length] if len(path) >= length else [] for path in case.paths]
    return case


# Baselines ------------------------------------------------------------------------------------------------------------


@seeds
def test_rloo_is_dr_grpo_times_g_over_g_minus_one(seed: int) -> None:
    case = make_case(seed)
    ours = advantages_of(replace(rloo(), kl=None), case)
    centered = advantages_of(dr_grpo(), case)
    for row, task in enumerate(case.tasks):
        size = case.tasks.count(task)
        factor = size / (size - 1) if size > 1 else 0.0
        torch.testing.assert_close(ours[row], factor * centered[row], rtol=0, atol=1e-12)
    assert centered.any()


@seeds
def test_both_reinforce_pp_coincide_on_one_task(seed: int) -> None:
    case = make_case(seed)
    case.batch = replace(case.batch, group=torch.zeros_like(case.batch.group))
    plain, baseline = (
        advantages_of(replace(entry, kl=None), case) for entry in (reinforce_pp(), reinforce_pp_baseline())
    )
    torch.testing.assert_close(plain, baseline, rtol=0, atol=1e-12)
    case = make_case(seed)
    several = advantages_of(replace(reinforce_pp_baseline(), kl=None), case)
    assert not torch.allclose(several, baseline, atol=1e-3)


@seeds
def test_whitened_tokens_have_mean_0_and_variance_1(seed: int) -> None:
    case = make_case(seed)
    for entry in (reinforce_pp(), reinforce_pp_baseline()):
        tokens = advantages_of(entry, case)[case.batch.mask]
        assert tokens.mean().item() == pytest.approx(0.0, abs=1e-12)
        assert tokens.var(correction=1).item() == pytest.approx(1.0, abs=1e-6)


@seeds
def test_gae_without_discount_and_critic_is_the_reward_to_go(seed: int) -> None:
    """A = R at every token of a trajectory whose reward comes at its end."""
    case = make_case(seed)
    case.values = [0.0] * len(case.values)
    recipe = replace(ppo(), advantage=GAE(gamma=1.0, lam=1.0, whiten=False), kl=None)
    expected = torch.where(case.batch.mask, case.batch.rewards[:, None], 0.0)
    torch.testing.assert_close(advantages_of(recipe, case), expected, rtol=0, atol=1e-12)
    whitened = advantages_of(replace(ppo(), kl=None), case)
    torch.testing.assert_close(whitened, advantages_of(replace(reinforce_pp(), kl=None), case), rtol=0, atol=1e-12)


@seeds
def test_the_filter_of_dapo_removes_exactly_the_groups_without_contrast(seed: int) -> None:
    case = make_case(seed)
    keeps = DropConstantRewards()
    advantages = advantages_of(dr_grpo(), case)
    for task in set(case.tasks):
        members = [i for i, t in enumerate(case.tasks) if t == task]
        kept = keeps([case.rewards[i] for i in members])
        contrast = any(advantages[i].any() for i in members)
        assert kept == (len({case.rewards[i] for i in members}) > 1)
        assert kept or not contrast
        assert contrast or not kept or not any(case.paths[i] for i in members)


# Ratio levels ---------------------------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("level", [SequenceRatio(), SequenceTokenRatio(), ProductRatio(), MeanRatio()])
def test_with_one_token_every_ratio_is_the_token_ratio(
    level: SequenceRatio | SequenceTokenRatio | ProductRatio | MeanRatio, seed: int
) -> None:
    """GSPO of single tokens is GRPO."""
    case = cut(make_case(seed), 1)
    assert_same(replace(PLAIN, ratio=level), replace(PLAIN, ratio=TokenRatio()), case)
    assert differ(replace(PLAIN, ratio=level), PLAIN, make_case(seed))


@seeds
@pytest.mark.parametrize("clip", [UNCLIPPED, Clip(low=0.2, high=0.2), gspo().surrogate])
def test_gspo_token_is_gspo_where_a_trajectory_has_one_advantage(clip: Clip, seed: int) -> None:
    sequences, tokens = (replace(entry, surrogate=clip) for entry in (gspo(), gspo_token()))
    case = make_case(seed)
    first, second = loss_and_gradients(sequences, case), loss_and_gradients(tokens, case)
    assert first[0] == pytest.approx(second[0], abs=1e-7)
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=1e-8)
    if clip is UNCLIPPED:
        assert first[1].any()
        hard = arpo_hard().advantage  # tokens of a trajectory differ
        assert differ(replace(sequences, advantage=hard), replace(tokens, advantage=hard), case)


@seeds
def test_gmpo_is_gspo_where_nothing_is_clipped(seed: int) -> None:
    case = make_case(seed)
    assert_same(replace(gmpo(), surrogate=GeometricClip(width=50.0)), replace(gspo(), surrogate=UNCLIPPED), case)
    assert differ(gmpo(), replace(gspo(), surrogate=UNCLIPPED), case)


@seeds
def test_the_mean_ratio_unclipped_is_the_mean_of_token_losses(seed: int) -> None:
    """1/L sum_t r_t A is GRPO's objective: only under a clip does it matter what is averaged first."""
    case = make_case(seed)
    whole = replace(grpo_s(), advantage=GroupNormalized(), surrogate=UNCLIPPED)
    assert_same(whole, replace(PLAIN, surrogate=UNCLIPPED), case)
    assert differ(replace(whole, surrogate=Clip()), PLAIN, case)


# Surrogates -----------------------------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("tau", [0.3, 1.0, 1.05, 4.0])
def test_the_gradient_of_sapo_at_ratio_1_is_reinforce_for_any_temperature(seed: int, tau: float) -> None:
    gated = replace(sapo(), surrogate=SoftGate(tau_pos=tau, tau_neg=tau))
    assert_same(gated, replace(sapo(), surrogate=PolicyGradient()), on_policy(seed), value=False)
    assert differ(gated, replace(sapo(), surrogate=PolicyGradient()), make_case(seed))


@seeds
def test_without_a_clip_the_first_step_is_reinforce(seed: int) -> None:
    unclipped = replace(reinforce(), surrogate=UNCLIPPED)
    assert_same(unclipped, reinforce(), on_policy(seed), value=False)
    assert differ(unclipped, reinforce(), make_case(seed))


@seeds
def test_the_gradient_of_cispo_at_ratio_1_is_gpg(seed: int) -> None:
    """With GPG's centered advantages (alpha 1), against its plain-Python reference, too."""
    case = on_policy(seed)
    weighted = replace(cispo(), advantage=GroupCentered())
    assert_same(weighted, replace(weighted, surrogate=PolicyGradient()), case)
    expected = central_differences(
        lambda new: reference_gpg.loss(case.paths, case.rewards, case.tasks, new, alpha=1.0), case.new
    )
    assert loss_and_gradients(weighted, case)[1].tolist() == pytest.approx(expected, abs=1e-8)
    assert differ(weighted, replace(weighted, surrogate=PolicyGradient()), make_case(seed))


@seeds
def test_the_two_sided_clip_is_the_dual_clip(seed: int) -> None:
    """INTELLECT-2 bounds the ratio, -max(min(r, c), clip(r)) A where A < 0; the dual clip the loss, by c |A|."""
    case = make_case(seed)
    ratios = (case.column(case.new) - case.column(case.old)).exp()
    advantages = advantages_of(PLAIN, case)
    bounded = torch.minimum(ratios.clamp(max=2.0) * advantages, ratios.clamp(0.8, 1.2) * advantages)
    expected = -bounded[case.batch.mask].mean()
    recipe = replace(PLAIN, surrogate=Clip(dual=2.0), aggregation=TokenMean())
    assert loss_and_gradients(recipe, case)[0] == pytest.approx(expected.item(), abs=1e-7)
    assert ((ratios > 2.0) & (advantages < 0))[case.batch.mask].any()


@seeds
def test_aepo_without_entropy_has_the_value_of_grpo_and_more_gradient(seed: int) -> None:
    """A clipped positive token keeps the gradient of (1 + high) A log pi; the others are PPO's."""
    case = make_case(seed)
    preserving = replace(aepo(), advantage=EntropyAware(inner=GroupNormalized(), weight=0.0))
    clipping = replace(preserving, surrogate=Clip())
    (value, _, ours), (other, _, theirs) = (loss_and_gradients(recipe, case) for recipe in (preserving, clipping))
    assert value == pytest.approx(other, abs=1e-12)
    ratios = (case.column(case.new) - case.column(case.old)).exp()
    advantages = advantages_of(preserving, case)
    cut_by_ppo = case.batch.mask & (advantages > 0) & (ratios > 1.2)
    assert cut_by_ppo.any()
    torch.testing.assert_close(ours[~cut_by_ppo], theirs[~cut_by_ppo], rtol=0, atol=1e-12)
    assert not theirs[cut_by_ppo].any()
    expected = -1.2 * advantages[cut_by_ppo] / case.batch.mask.sum()
    torch.testing.assert_close(ours[cut_by_ppo], expected, rtol=0, atol=1e-8)


@seeds
def test_bapo_at_ratio_1_does_not_search(seed: int) -> None:
    """Bounds do not matter there, and the search would run to its end; everything equals GRPO's token mean."""
    case = bapo_edges(seed)
    surrogate = AdaptiveClip(share=0.99)
    recipe = replace(PLAIN, surrogate=surrogate, aggregation=TokenMean())
    assert_same(recipe, replace(recipe, surrogate=UNCLIPPED), case.moved(case.old))
    assert differ(recipe, replace(recipe, surrogate=UNCLIPPED), case)


# Aggregations ---------------------------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("length", [2, 3])
def test_over_equal_lengths_all_means_are_one(seed: int, length: int) -> None:
    case = cut(make_case(seed), length)
    for other in (TokenMean(), Constant(length)):
        assert_same(PLAIN, replace(PLAIN, aggregation=other), case)
        assert differ(PLAIN, replace(PLAIN, aggregation=other), make_case(seed))


def test_the_sum_over_tokens_is_length_times_their_mean() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    per_mean, per_sum = SeqMeanTokenMean()(mask), SeqMeanTokenSum()(mask)
    torch.testing.assert_close(per_sum, per_mean * mask.sum(dim=1, keepdim=True))


@seeds
def test_hard_and_soft_agree_only_where_tokens_weigh_the_same_and_none_is_clipped(seed: int) -> None:
    case = make_case(seed)
    soft, hard = (replace(entry, aggregation=TokenMean(), surrogate=UNCLIPPED) for entry in (arpo(), arpo_hard()))
    assert_same(soft, hard, case)
    aggregation = arpo().aggregation
    assert differ(replace(soft, aggregation=aggregation), replace(hard, aggregation=aggregation), case)
    assert differ(replace(soft, surrogate=Clip()), replace(hard, surrogate=Clip()), case)


# Entropy --------------------------------------------------------------------------------------------------------------


@seeds
@pytest.mark.parametrize("bonus", [0.0, 0.1, 2.0])
def test_gtpo_conserves_mass(seed: int, bonus: float) -> None:
    """At every time the trajectories of a class that are alive share (base + bonus) per head, failures with a minus."""
    case = make_case(seed)
    batch = case.batch
    rewards = entropy_shaped_tokens(batch.entropies, batch.success, batch.group, batch.mask, base=0.9, bonus=bonus)
    time = batch.mask.cumsum(dim=1) - 1
    classes = 0
    for task in set(case.tasks):
        for success, sign in ((True, 1.0), (False, -1.0)):
            rows = (batch.group == task) & (batch.success == success)
            for t in range(int(batch.lengths.max())):
                there = rewards[batch.mask & (time == t) & rows[:, None]]
                assert there.sum().item() == pytest.approx(sign * (0.9 + bonus) * len(there), abs=1e-9)
                classes += len(there) > 1
    assert classes > 3


@seeds
def test_grpo_s_conserves_mass(seed: int) -> None:
    case = make_case(seed)
    batch = case.batch
    rewards = entropy_shaped_sequences(batch.entropies, batch.success, batch.group, batch.mask, base=0.9, bonus=0.3)
    for task in set(case.tasks):
        for success, sign in ((True, 1.0), (False, -1.0)):
            there = rewards[(batch.group == task) & (batch.success == success) & batch.mask.any(dim=1)]
            assert there.sum().item() == pytest.approx(sign * 1.2 * len(there), abs=1e-9)


def test_of_equal_entropies_gtpo_makes_dr_grpo() -> None:
    """Everybody's share is the same: +-(base + bonus) by success, so z-scores of successes over tokens."""
    batch = make_batch([2, 3, 1], [1.0, 0.0, 0.0])
    rewards = entropy_shaped_tokens(
        torch.full_like(batch.entropies, 0.7), batch.success, batch.group, batch.mask, base=1.0, bonus=0.1
    )
    expected = torch.where(batch.mask, torch.where(batch.success, 1.1, -1.1)[:, None], 0.0).to(F64)
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-6)


def test_the_gradient_preserving_clip_can_be_told_from_ppo() -> None:
    """Negative control for the relation above."""
    case = make_case(0)
    assert differ(replace(aepo(), surrogate=GradientPreservingClip()), replace(aepo(), surrogate=Clip()), case)
