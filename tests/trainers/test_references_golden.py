"""The references themselves are anchored to published numbers: golden vectors whose arithmetic fits on a line."""

import math

import numpy as np
import pytest
import reference_aepo
import reference_bapo
import reference_dpo
import reference_gpg
import reference_gspo
import reference_ipo
import reference_kto
import reference_opo
import reference_orpo
import reference_ppo
import reference_reinforce
import reference_reinforce_pp
import reference_reinforce_pp_baseline
import reference_rloo
import reference_sapo
from reference_tools import Rows, broadcast, group_centred, group_z_scores, k1, k2, k3

# Eight trajectories of one task, three of them right: mean 3/8 = .375, sum of squared deviations
# 3 * .625^2 + 5 * .375^2 = 1.875, std sqrt(1.875 / 7) = .517549. 60 of the 200 tokens lie on the right ones
# (10 + 40 + 10).
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
LENGTHS = [10, 20, 30, 40, 10, 20, 30, 40]
TASKS = [0] * 8
STARTS = [sum(LENGTHS[:i]) for i in range(8)]
PATHS = [list(range(start, start + length)) for start, length in zip(STARTS, LENGTHS, strict=True)]
FLAT = [-1.0] * 200
EIGHT: dict[str, tuple[Rows, float, float]] = {
    # .625 / (.517549 + eps), -.375 / (.517549 + eps)
    "grpo, verl's epsilon": (broadcast(PATHS, group_z_scores(REWARDS, TASKS, 1e-6)), 1.207612, -0.724567),
    "grpo, TRL's epsilon": (broadcast(PATHS, group_z_scores(REWARDS, TASKS, 1e-4)), 1.207381, -0.724429),
    # 1 - .375, 0 - .375
    "dr_grpo": (broadcast(PATHS, group_centred(REWARDS, TASKS)), 0.625, -0.375),
    # With one task in the batch, the batch mean is the group mean.
    "reinforce": (reference_reinforce.advantages(PATHS, REWARDS), 0.625, -0.375),
    # 1 - 2/7 = .625 * 8/7, 0 - 3/7 = -.375 * 8/7
    "rloo": (reference_rloo.advantages(PATHS, REWARDS, TASKS, FLAT, FLAT), 0.714286, -0.428571),
    # baseline 60 / 200 = .3
    "opo": (reference_opo.advantages(PATHS, REWARDS, TASKS), 0.7, -0.3),
    # alpha = 8 / 3: .625 * 8/3, -.375 * 8/3
    "gpg": (reference_gpg.advantages(PATHS, REWARDS, TASKS), 1.666667, -1.0),
    # mean over tokens .3, std sqrt(200 * .3 * .7 / 199) = .459407: .7 / .459407, -.3 / .459407
    "reinforce_pp": (reference_reinforce_pp.advantages(PATHS, REWARDS, FLAT, FLAT), 1.523702, -0.653015),
    # Both values moved by -.375 and so did their mean: the same after whitening.
    "reinforce_pp_baseline": (reference_reinforce_pp_baseline.advantages(PATHS, REWARDS, TASKS), 1.523702, -0.653015),
}


@pytest.mark.parametrize("name", EIGHT)
def test_group_of_eight(name: str) -> None:
    rows, right, wrong = EIGHT[name]
    assert [len(row) for row in rows] == LENGTHS
    for reward, row in zip(REWARDS, rows, strict=True):
        assert row == pytest.approx([right if reward else wrong] * len(row), abs=6e-7)


@pytest.mark.parametrize(
    ("ratio", "positive", "negative"),
    [
        (0.5, -0.5, 0.8),  # A < 0: the ratio is held at .8
        (1.0, -1.0, 1.0),
        (1.5, -1.2, 1.5),  # A > 0: held at 1.2
        (4.0, -1.2, 3.0),  # A < 0: dual clip at 3
    ],
)
def test_ppo_token_loss(ratio: float, positive: float, negative: float) -> None:
    for advantage, expected in ((1.0, positive), (-1.0, negative)):
        value = reference_ppo.policy_loss([[0]], [[advantage]], [math.log(ratio)], [0.0], dual_clip=3.0)
        assert value == pytest.approx(expected, abs=1e-12)
    if ratio == 4.0:  # Without the dual clip nothing holds it.
        assert reference_ppo.policy_loss([[0]], [[-1.0]], [math.log(4)], [0.0]) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("ratio", "positive", "negative"),
    [
        (0.5, -1.510163, 1.415938),  # 4 sigma(-.5) = 4 * .377541; 4 / 1.05 sigma(-.525) = 3.809524 * .371684
        (1.0, -2.0, 1.904762),  # 4 * .5; 3.809524 * .5
        (1.5, -2.489837, 2.393586),  # 4 * .622459; 3.809524 * .628316
        (4.0, -3.810297, 3.652986),  # 4 sigma(3) = 4 * .952574; 3.809524 sigma(3.15) = 3.809524 * .958909
    ],
)
def test_sapo_token_loss(ratio: float, positive: float, negative: float) -> None:
    assert -reference_sapo.gate(ratio, 1.0) == pytest.approx(positive, abs=6e-7)
    assert reference_sapo.gate(ratio, 1.05) == pytest.approx(negative, abs=6e-7)
    # In a pair with rewards 1 and 0 both signs occur, each with |A| = .5 / (sqrt(.5) + eps) = .707107.
    both = reference_sapo.loss([[0], [1]], [1.0, 0.0], [0, 0], [math.log(ratio)] * 2, [0.0] * 2, eps=0.0)
    assert both == pytest.approx(math.sqrt(0.5) * (positive + negative) / 2, abs=6e-7)


def test_sequence_ratios() -> None:
    """log-ratios .1, -.05, .02: their sum is .07, their mean .023333."""
    new = [0.1, -0.05, 0.02]
    assert reference_gspo.sequence_ratio([0, 1, 2], new, [0.0] * 3) == pytest.approx(1.023608, abs=6e-7)  # e^.023333
    # TRL's RLOO has the product, e^.07 = 1.072508, inside its clip. The sibling without contrast in its log-probs has
    # ratio 1; rewards 1 and 0 give leave-one-out advantages 1 and -1: -(1.072508 - 1) / 2.
    value = reference_rloo.trl_loss([[0, 1, 2], [3]], [1.0, 0.0], [0, 0], [*new, 0.0], [0.0] * 4, [0.0] * 4)
    assert value == pytest.approx(-(1.072508 - 1) / 2, abs=6e-7)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0.1, (0.1, 0.005, 0.00483742)),  # e^-.1 - 1 + .1
        (-0.1, (-0.1, 0.005, 0.00517092)),  # e^.1 - 1 - .1
        (0.5, (0.5, 0.125, 0.10653066)),  # e^-.5 - 1 + .5
    ],
)
def test_kl_estimators(difference: float, expected: tuple[float, float, float]) -> None:
    values = [estimator(difference - 1, -1.0) for estimator in (k1, k2, k3)]
    assert values == pytest.approx(expected, abs=6e-9)


def test_dpo() -> None:
    """ln 2 at the start; h = .3: -log sigmoid(.03) = log(1 + e^-.03) = .678260."""
    pairs = [(0, 1)]
    assert reference_dpo.loss([[0, 1], [2]], pairs, FLAT[:3], FLAT[:3]) == pytest.approx(math.log(2), abs=1e-12)
    # Chosen +.1 and +.1, rejected -.1.
    value = reference_dpo.loss([[0, 1], [2]], pairs, [-0.9, -0.9, -1.1], FLAT[:3], beta=0.1)
    assert value == pytest.approx(0.678260, abs=6e-7)


def test_ipo() -> None:
    """1 / (2 * .1) = 5: 25 at the start in both forms; (.3 - 5)^2 = 22.09."""
    for token_mean in (False, True):
        start = reference_ipo.loss([[0, 1], [2]], [(0, 1)], FLAT[:3], FLAT[:3], token_mean=token_mean)
        assert start == pytest.approx(25.0, abs=1e-12)
    moved = [-0.9, -0.9, -1.1]
    assert reference_ipo.loss([[0, 1], [2]], [(0, 1)], moved, FLAT[:3]) == pytest.approx(22.09, abs=1e-12)
    # Means: .1 - (-.1) = .2, and (.2 - 5)^2 = 23.04.
    by_token = reference_ipo.loss([[0, 1], [2]], [(0, 1)], moved, FLAT[:3], token_mean=True)
    assert by_token == pytest.approx(23.04, abs=1e-12)


def test_kto() -> None:
    """1 - sigmoid(.1 (.2 - .05)) = 1 - sigmoid(.015) = .49625; undesirable: .1 (.05 + .1) is the same .015."""
    for difference, desirable in ((0.2, True), (-0.1, False)):
        value = reference_kto.loss([[0]], [desirable], [difference - 1], FLAT[:1], 0.05, beta=0.1)
        assert value == pytest.approx(0.49625, abs=6e-7)
    assert reference_kto.loss([[0]], [True], FLAT[:1], FLAT[:1], 0.0) == pytest.approx(0.5, abs=1e-12)
    # Mismatched log-ratios .2 and -.1: mean .05. Both negative: z0 is 0. A path without tokens is no evidence.
    assert reference_kto.reference_point([[0], [1], []], [0.2, -0.1], [0.0, 0.0]) == pytest.approx(0.05, abs=1e-12)
    assert reference_kto.reference_point([[0], [1]], [-0.2, -0.1], [0.0, 0.0]) == 0.0


def test_orpo() -> None:
    """-.5 - log(1 - e^-.5) = .432752, -1 - log(1 - e^-1) = -.541325: gap .974077; .5 + .1 log(1 + e^-.974077)."""
    assert reference_orpo.log_odds(-0.5) - reference_orpo.log_odds(-1.0) == pytest.approx(0.974077, abs=6e-7)
    # The mean of -.4 and -.6 is -.5: length does not matter.
    assert reference_orpo.loss([[0, 1], [2]], [(0, 1)], [-0.4, -0.6, -1.0]) == pytest.approx(0.532030, abs=6e-7)


def test_aepo_rollout_numbers() -> None:
    """16 sigma(-1) = 4.3, 16 sigma(0) = 8, 16 sigma(1) = 11.7: rounded down, plus one."""
    assert [reference_aepo.global_samples(16, 1.0 + change, 1.0) for change in (-2, 0, 2)] == [5, 9, 12]
    # 1 - .5, 1 - .5 / .95, 1 - .5 / .9; from ten branchings in a row on, 1 - .5 / .5 = 0.
    chances = [reference_aepo.branch_probability(0.0, count) for count in (0, 1, 2, 10, 20)]
    assert chances == pytest.approx([0.5, 0.473684, 0.444444, 0.0, 0.0], abs=6e-7)
    assert reference_aepo.branch_probability(1.0, 0) == pytest.approx(0.7)  # 1 - .5 + .2


@pytest.fixture(scope="module")
def bapo_tokens() -> list[reference_bapo.Token]:
    """4000 tokens: log-ratios N(0, .5), 30 % with advantage 1, the others -.6."""
    rng = np.random.default_rng(0)
    log_ratios, draws = rng.normal(0.0, 0.5, 4000), rng.random(4000)
    return [(1.0 if u < 0.3 else -0.6, math.exp(x), 1.0) for x, u in zip(log_ratios, draws, strict=True)]


@pytest.mark.parametrize(
    ("accounting", "by_low", "by_high"),
    [
        ("value", [0.3743, 0.3701, 0.3643, 0.3569], [0.3743, 0.3943, 0.4101, 0.4179]),
        ("gradient", [0.2616, 0.2723, 0.2880, 0.3063], [0.2616, 0.3298, 0.3929, 0.4314]),
    ],
)
def test_bapo_positive_share(
    bapo_tokens: list[reference_bapo.Token], accounting: str, by_low: list[float], by_high: list[float]
) -> None:
    """A raised lower bound lowers the share in the paper's literal accounting, and raises it in that of gradients."""
    lows = [reference_bapo.positive_share(bapo_tokens, low, 1.2, accounting) for low in (0.6, 0.7, 0.8, 0.9)]
    highs = [reference_bapo.positive_share(bapo_tokens, 0.6, high, accounting) for high in (1.2, 1.5, 2.0, 3.0)]
    assert lows == pytest.approx(by_low, abs=6e-5)
    assert highs == pytest.approx(by_high, abs=6e-5)


def test_bapo_search(bapo_tokens: list[reference_bapo.Token]) -> None:
    """(3 - 1.2) / .05 + (.9 - .6) / .02 = 36 + 15 = 51 steps at most, in either order."""
    for order in ("high_first", "low_first"):
        low, high, steps = reference_bapo.search([(-1.0, 1.0, 1.0)], order=order)  # no positive token: to the end
        assert (low, high, steps) == (pytest.approx(0.9), pytest.approx(3.0), 51)
        assert reference_bapo.search([(1.0, 1.0, 1.0)], order=order)[2] == 0  # no negative token: not at all
        low, high, steps = reference_bapo.search(bapo_tokens, order=order)
        assert reference_bapo.positive_share(bapo_tokens, low, high, "gradient") >= 0.4
        assert 0 < steps < 51
        assert (low == 0.6) == (order == "high_first")  # gradient accounting crosses .4 between 2.0 and 3.0
    # The literal accounting: .3943 at 1.5 and .4101 at 2.0; raising the lower bound first goes the wrong way.
    assert 1.5 < reference_bapo.search(bapo_tokens, accounting="value")[1] <= 2.0
    assert reference_bapo.search(bapo_tokens, accounting="value", order="low_first")[0] == pytest.approx(0.9)
    # Whole steps: (.95 - .8) / .05 is 2.9999999999999982 in floats, and three steps.
    ends = reference_bapo.search([(-1.0, 1.0, 1.0)], low=(0.8, 0.95), high=(1.2, 2.0), step_low=0.05, step_high=0.1)
    assert ends == (pytest.approx(0.95), pytest.approx(2.0), 11)
