"""Numbers worked out by hand, as they appear in papers and libraries; the arithmetic stands beside each."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from path_cases import make_batch

from agentrl.rollout.branching import branch_probability, num_global
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trainers import Clip, PathBatch, Recipe, SeqMeanTokenMean, TokenMean
from agentrl.trainers.adaptive_clip import AdaptiveClip, Contribution, positive_share
from agentrl.trainers.advantages import group_centered, group_normalized, mean_over_shared
from agentrl.trainers.kl import k1, k2, k3
from agentrl.trainers.objective import compute_advantages, compute_weights, policy_loss
from agentrl.trainers.preference.parts import DPO, IPO, KTO, ORPO, Examples, PathScores, PreferenceLoss
from agentrl.trainers.ratios import mean_level, product_level, sequence_level
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.recipes.arpo import arpo, arpo_hard
from agentrl.trainers.recipes.dapo import dapo
from agentrl.trainers.recipes.remax import remax
from agentrl.trainers.shaping import overlong_penalty
from agentrl.trainers.soft_surrogates import soft_gated
from agentrl.trainers.surrogates import clipped

F64 = torch.float64
DIGITS = 5e-7
"""Half of the last digit given."""

# A group of 8 with 3 successes: mean 3/8 = .375; squared deviations 3 * .625^2 + 5 * .375^2 = 1.875;
# std sqrt(1.875 / 7) = .517549 (ddof 1) or sqrt(1.875 / 8) = .484123 (ddof 0).
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
LENGTHS = [10, 20, 30, 40, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("eps", "ddof", "success", "failure"),
    [
        pytest.param(1e-6, 1, 1.207612, -0.724567, id="verl"),  # .625 / .517550 and -.375 / .517550
        pytest.param(1e-4, 1, 1.207381, -0.724429, id="TRL"),  # .625 / .517649 and -.375 / .517649
        # .625 / .484123 = 1.2909944 and -.375 / .484123 = -.7745967; the six digits hold for eps = 1e-6
        pytest.param(1e-6, 0, 1.290992, -0.774595, id="population"),
    ],
)
def test_grpo_advantages(eps: float, ddof: int, success: float, failure: float) -> None:
    rewards, group = torch.tensor(REWARDS, dtype=F64), torch.zeros(8, dtype=torch.int64)
    expected = [success if reward else failure for reward in REWARDS]
    assert group_normalized(rewards, group, eps=eps, ddof=ddof).tolist() == pytest.approx(expected, abs=DIGITS)


ADVANTAGES = {
    "grpo": (1.207612, -0.724567),
    "grpo_trl": (1.207381, -0.724429),
    "grpo_verl": (1.207612, -0.724567),
    "dapo": (1.207612, -0.724567),  # 40 tokens are far below 16384: no penalty
    "arpo": (1.207612, -0.724567),
    "arpo_hard": (1.207612, -0.724567),  # nothing shared
    "gspo": (1.207612, -0.724567),
    "sapo": (1.207612, -0.724567),
    "cispo": (1.207612, -0.724567),
    "gmpo": (1.207612, -0.724567),
    "bapo": (1.207612, -0.724567),
    "clip_cov": (1.207612, -0.724567),
    "kl_cov": (1.207612, -0.724567),
    "aepo": (1.207612, -0.724567),  # all entropies are equal: the factor is 1
    "dr_grpo": (0.625, -0.375),  # 1 - .375, 0 - .375
    "reinforce": (0.625, -0.375),  # with one task in the batch, its mean is the group's
    "rloo": (0.714286, -0.428571),  # 1 - 2/7 = .625 * 8/7 and 0 - 3/7 = -.375 * 8/7
    "rloo_trl": (0.714286, -0.428571),
    "opo": (0.7, -0.3),  # the right ones have 10 + 40 + 10 of 200 tokens: baseline .3
    # Mean over tokens .3, std sqrt(200 * .3 * .7 / 199) = .459407: .7 / .459407 and -.3 / .459407. Centered by .375
    # first, both values and their mean have moved: the same.
    "reinforce_pp": (1.523702, -0.653015),
    "reinforce_pp_baseline": (1.523702, -0.653015),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_recipes_give_every_token_its_advantage(name: str) -> None:
    batch = make_batch(LENGTHS, REWARDS)
    success, failure = ADVANTAGES[name]
    level = torch.zeros(batch.mask.shape, dtype=F64)  # policy and reference agree: no penalty
    entry = RECIPES[name]
    assert isinstance(entry, Recipe)
    advantages = compute_advantages(entry, batch, old_logprobs=level, ref_logprobs=level)
    for row, (reward, length) in enumerate(zip(REWARDS, LENGTHS, strict=True)):
        expected = [success if reward else failure] * length + [0.0] * (40 - length)
        assert advantages[row].tolist() == pytest.approx(expected, abs=DIGITS)


def test_gpg_advantages() -> None:
    """alpha = 8 / 3, trajectories over those with a reward: .625 * 8/3 and -.375 * 8/3."""
    rewards, group = torch.tensor(REWARDS, dtype=F64), torch.zeros(8, dtype=torch.int64)
    scaled = 8 / 3 * group_centered(rewards, group)
    assert scaled.tolist() == pytest.approx([1.666667 if reward else -1.0 for reward in REWARDS], abs=DIGITS)


def test_remax_advantages() -> None:
    """R - R_greedy, greedy .4: 1 - .4 and 0 - .4; a k1 of .2 at .01 on every token takes .002 more."""
    batch = replace(make_batch(LENGTHS, REWARDS), greedy_rewards=torch.full((8,), 0.4, dtype=F64))
    level = torch.zeros(batch.mask.shape, dtype=F64)
    advantages = compute_advantages(remax(), batch, old_logprobs=level, ref_logprobs=level - 0.2)
    expected = torch.tensor([0.598 if reward else -0.402 for reward in REWARDS], dtype=F64)
    torch.testing.assert_close(advantages[:, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("ratio", "positive", "negative"),
    [
        (0.5, -0.5, 0.8),  # -min(.5, .8) and -min(-.5, -.8)
        (1.0, -1.0, 1.0),
        (1.5, -1.2, 1.5),  # -min(1.5, 1.2) and -min(-1.5, -1.2)
        (4.0, -1.2, 3.0),  # -min(4, 1.2); 4 capped at the dual clip's 3
    ],
)
def test_ppo_clip_table(ratio: float, positive: float, negative: float) -> None:
    log_ratio = torch.full((1, 2), math.log(ratio), dtype=F64)
    advantages = torch.tensor([[1.0, -1.0]], dtype=F64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    values = clipped(log_ratio, advantages, mask, low=0.2, high=0.2, dual=3.0).values
    assert values[0].tolist() == pytest.approx([positive, negative], abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "positive", "negative"),
    [
        (0.5, -1.510163, 1.415938),  # 4 sigma(-.5) = 4 * .377541; 4 / 1.05 sigma(-.525) = 3.809524 * .371684
        (1.0, -2.0, 1.904762),  # 4 * .5; 3.809524 * .5
        (1.5, -2.489837, 2.393586),  # 4 * .622459; 3.809524 * .628316
        (4.0, -3.810297, 3.652986),  # 4 sigma(3) = 4 * .952574; 3.809524 sigma(3.15) = 3.809524 * .958909
    ],
)
def test_sapo_table(ratio: float, positive: float, negative: float) -> None:
    log_ratio = torch.full((1, 2), math.log(ratio), dtype=F64)
    advantages = torch.tensor([[1.0, -1.0]], dtype=F64)
    values = soft_gated(log_ratio, advantages, torch.ones(1, 2, dtype=torch.bool), tau_pos=1.0, tau_neg=1.05)
    assert values[0].tolist() == pytest.approx([positive, negative], abs=DIGITS)


def test_sequence_ratios() -> None:
    """Of .1, -.05, .02: e^(.07 / 3), e^.07, and (1.105171 + .951229 + 1.020201) / 3; the tool's token is out."""
    log_ratio = torch.tensor([[0.1, math.nan, -0.05, 0.02]], dtype=F64)
    mask = torch.tensor([[True, False, True, True]])
    for level, expected in ((sequence_level, 1.023608), (product_level, 1.072508), (mean_level, 1.025534)):
        assert level(log_ratio, mask).exp()[mask].tolist() == pytest.approx([expected] * 3, abs=DIGITS)


def test_kl_estimators() -> None:
    d = torch.tensor([0.1, -0.1, 0.5], dtype=F64)
    assert k1(d).tolist() == [0.1, -0.1, 0.5]
    assert k2(d).tolist() == pytest.approx([0.005, 0.005, 0.125], abs=1e-15)  # .01 / 2, .25 / 2
    # e^-.1 - .9 = .90483742 - .9; e^.1 - 1.1 = 1.10517092 - 1.1; e^-.5 - .5 = .60653066 - .5
    assert k3(d).tolist() == pytest.approx([0.00483742, 0.00517092, 0.10653066], abs=5e-9)


def test_dapo_overlong_penalty() -> None:
    # 20480 - 4096 = 16384 tokens are free; (16384 - 18432) / 4096 = -.5; verl's unfloored formula: -1.000244 at 20481
    lengths = torch.tensor([16384, 18432, 20480, 20481])
    assert overlong_penalty(lengths, max_length=20480, cache=4096).tolist() == [0.0, -0.5, -1.0, -1.0]
    (penalty,) = dapo().shaping
    assert penalty(make_batch([18432, 1], [0.0, 0.0])).tolist() == [-0.5, 0.0]


def test_hard_advantage_of_a_shared_prefix() -> None:
    """(1.207612 - .724567) / 2 = .241522: two siblings of the group above, R = 1 and R = 0, share their first token."""
    index = [[100, *range(1, 10)], [100, *range(10, 29)]] + [
        list(range(1000 * row, 1000 * row + length)) for row, length in enumerate(LENGTHS) if row > 1
    ]
    batch = make_batch(LENGTHS, REWARDS, token_index=index)
    advantages = compute_advantages(arpo_hard(), batch)
    assert advantages[:2, 0].tolist() == pytest.approx([0.241522] * 2, abs=DIGITS)
    assert advantages[:2, 1].tolist() == pytest.approx([1.207612, -0.724567], abs=DIGITS)


# Trajectories of 12 and 30 tokens with advantages 1.2 and -.7 share one token; hard: (1.2 - .7) / 2 = .25 for both.
#   token_mean, r = 1:            soft (1.2 - .7) / 42 = .0119048;            hard (.25 + .25) / 42 = the same
#   seq_mean_token_mean, r = 1:   soft (1.2 / 12 - .7 / 30) / 2 = .0383333;   hard (.25 / 12 + .25 / 30) / 2 = .0145833
#   token_mean, r = 1.5:          soft: the positive copy is clipped, 1.5 * -.7 / 42 = -.025; hard: both clipped, 0
SHARED = make_batch([12, 30], [0.0, 0.0], token_index=[list(range(12)), [0, *range(12, 41)]])


@pytest.mark.parametrize(
    ("aggregation", "ratio", "soft", "hard"),
    [
        (TokenMean(), 1.0, 0.0119048, 0.0119048),
        (SeqMeanTokenMean(), 1.0, 0.0383333, 0.0145833),
        (TokenMean(), 1.5, -0.025, 0.0),
    ],
)
def test_gradient_of_a_shared_token(
    aggregation: TokenMean | SeqMeanTokenMean, ratio: float, soft: float, hard: float
) -> None:
    recipe = replace(arpo(), surrogate=Clip(low=0.2, high=0.2), aggregation=aggregation)
    own = torch.tensor([1.2, -0.7], dtype=F64)[:, None].expand(SHARED.mask.shape)
    levelled = mean_over_shared(own, SHARED.token_index, SHARED.mask)
    assert objective_slope(recipe, SHARED, own, ratio) == pytest.approx(soft, abs=5e-8)
    assert objective_slope(recipe, SHARED, levelled, ratio) == pytest.approx(hard, abs=5e-8)


def objective_slope(recipe: Recipe, batch: PathBatch, advantages: torch.Tensor, ratio: float) -> float:
    """d objective / d log pi of the shared token 0, whose copies sum up; the objective is minus the loss."""
    logprobs = torch.full((41,), math.log(ratio), dtype=F64, requires_grad=True)
    old = torch.zeros(batch.mask.shape, dtype=F64)
    weights = compute_weights(recipe, batch)
    loss, _ = policy_loss(
        recipe, batch, logprobs[batch.token_index], old_logprobs=old, advantages=advantages, weights=weights
    )
    (-loss).backward()
    assert logprobs.grad is not None
    return float(logprobs.grad[0])


# 4000 tokens: log-ratios N(0, .5), 30 % with advantage 1, the others -.6.
GENERATOR = np.random.default_rng(0)
RATIOS = torch.from_numpy(GENERATOR.normal(0.0, 0.5, 4000)).exp()
SIGNS = torch.where(torch.from_numpy(GENERATOR.random(4000)) < 0.3, 1.0, -0.6).double()


@pytest.mark.parametrize(
    ("contribution", "by_low", "by_high"),
    [
        (Contribution.VALUE, [0.3743, 0.3701, 0.3643, 0.3569], [0.3743, 0.3943, 0.4101, 0.4179]),
        (Contribution.GRADIENT, [0.2616, 0.2723, 0.2880, 0.3063], [0.2616, 0.3298, 0.3929, 0.4314]),
    ],
)
def test_bapo_positive_share(contribution: Contribution, by_low: list[float], by_high: list[float]) -> None:
    """A raised lower bound lowers the share in the paper's literal accounting, and raises it in that of gradients."""

    def share(low: float, high: float) -> float:
        weights = torch.ones(4000, dtype=F64)
        return float(positive_share(SIGNS, RATIOS, weights, low=low, high=high, contribution=contribution))

    assert [share(low, 1.2) for low in (0.6, 0.7, 0.8, 0.9)] == pytest.approx(by_low, abs=6e-5)
    assert [share(0.6, high) for high in (1.2, 1.5, 2.0, 3.0)] == pytest.approx(by_high, abs=6e-5)
    grid = [share(0.6 + 0.02 * i, 1.2) for i in range(16)]
    assert grid == sorted(grid, reverse=contribution is Contribution.VALUE)
    grid = [share(0.6, 1.2 + 0.05 * i) for i in range(37)]
    assert grid == sorted(grid)


def test_bapo_searches_51_steps_at_most() -> None:
    """(3 - 1.2) / .05 = 36 steps of the upper bound, then (.9 - .6) / .02 = 15 of the lower one."""
    schedule = AdaptiveClip().schedule
    assert len(schedule) - 1 == 51
    assert schedule[0] == (0.6, 1.2)
    assert schedule[36] == pytest.approx((0.6, 3.0))
    assert schedule[51] == pytest.approx((0.9, 3.0))
    assert schedule == sorted(schedule)
    # Whole steps: (.95 - .8) / .05 is 2.9999999999999982 in floats, and three steps.
    ends = AdaptiveClip(low=(0.8, 0.95), high=(1.2, 2.0), low_step=0.05, high_step=0.1).schedule
    assert len(ends) - 1 == 3 + 8
    assert ends[-1] == pytest.approx((0.95, 2.0))


def scores(*sums: float, lengths: int = 1) -> PathScores:
    """Trajectories with these sums of log-probabilities, or of log-ratios."""
    values = torch.tensor(sums, dtype=F64)
    return PathScores(logprobs=values, log_ratios=values, lengths=torch.full((len(sums),), lengths))


@pytest.mark.parametrize(
    ("loss", "chosen", "rejected", "expected"),
    [
        (DPO(beta=0.1), 0.0, 0.0, math.log(2)),  # before the first step
        (DPO(beta=0.1), 0.2, -0.1, 0.678260),  # h = .3: log(1 + e^-.03)
        (IPO(tau=0.1), 0.0, 0.0, 25.0),  # (1 / .2)^2
        (IPO(tau=0.1), 0.2, -0.1, 22.09),  # (.3 - 5)^2
        # log-odds log(.606531 / .393469) = .432752 and log(.367879 / .632121) = -.541325: gap .974077;
        # .5 + .1 log(1 + e^-.974077) = .5 + .1 * .320301
        (ORPO(weight=0.1), -0.5, -1.0, 0.532030),
    ],
    ids=str,
)
def test_pairs(loss: PreferenceLoss, chosen: float, rejected: float, expected: float) -> None:
    values, _ = loss(Examples(chosen=scores(chosen), rejected=scores(rejected)))
    assert values.tolist() == pytest.approx([expected], abs=DIGITS)


def test_kto() -> None:
    """z0 = .05: 1 - sigmoid(.1 (.2 - .05)) and 1 - sigmoid(.1 (.05 + .1)), both 1 - sigmoid(.015)."""
    examples = Examples(chosen=scores(0.2), rejected=scores(-0.1), reference_point=torch.tensor(0.05, dtype=F64))
    assert KTO(beta=0.1)(examples)[0].tolist() == pytest.approx([0.49625, 0.49625], abs=DIGITS)


def test_branching_probabilities() -> None:
    """.5 + .2 dH, held within [0, 1]; AEPO's m = int(16 sigma(.5 d)) + 1: 4 + 1, 8 + 1, 11 + 1."""
    probabilities = [branch_probability(change, 0.5, 0.2) for change in (-1, 0, 0.3, 1, 3)]
    assert probabilities == pytest.approx([0.3, 0.5, 0.56, 0.7, 1.0], abs=1e-12)
    plan = GroupPlan(size=16, rule=BranchRule.AEPO, dynamic=True)
    assert [num_global(0.3 + d / plan.probe_tokens, 0.3, plan) for d in (-2, 0, 2)] == [5, 9, 12]
