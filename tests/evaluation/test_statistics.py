"""Success rates, pass@k and comparisons against arithmetic, enumeration and simulated coverage."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.evaluation.statistics import (
    Tally,
    mean_pass_at_k,
    minimum_detectable_difference,
    paired_difference,
    pass_at_k,
    success_rate,
    wilson_interval,
)

Z = 1.959963984540054  # the normal quantile of 0.975
REPEATS = 800
counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
tally = st.integers(1, 6).flatmap(lambda n: st.builds(Tally, st.integers(0, n), st.just(n)))


def single(outcomes: Sequence[int]) -> list[Tally]:
    """One attempt per task."""
    return [Tally(outcome, 1) for outcome in outcomes]


# Wilson


def test_wilson_ten_of_ten() -> None:
    # p = 1: low = (1 + z^2/20 - z^2/20) / (1 + z^2/10) = 10 / (10 + 3.841459)
    interval = wilson_interval(10, 10)
    assert interval.low == pytest.approx(10 / (10 + 3.841458821), abs=1e-9)
    assert (interval.value, interval.high) == (1.0, 1.0)


def test_wilson_zero_of_ten_mirrors_ten_of_ten() -> None:
    interval = wilson_interval(0, 10)
    assert (interval.value, interval.low) == (0.0, 0.0)
    assert interval.high == pytest.approx(1 - wilson_interval(10, 10).low, abs=1e-12)


def test_wilson_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263 gives 0.2553 to 0.3662, 15 of 148 gives
    # 0.0624 to 0.1605.
    assert wilson_interval(81, 263).low == pytest.approx(0.2553, abs=5e-5)
    assert wilson_interval(81, 263).high == pytest.approx(0.3662, abs=5e-5)
    assert wilson_interval(15, 148).low == pytest.approx(0.0624, abs=5e-5)
    assert wilson_interval(15, 148).high == pytest.approx(0.1605, abs=5e-5)


@given(counts)
def test_wilson_ends_are_where_the_score_test_gives_up(count: tuple[int, int]) -> None:
    # The definition: the interval holds every q with |p - q| <= z sqrt(q (1 - q) / n).
    successes, n = count
    interval = wilson_interval(successes, n)
    for end in {interval.low, interval.high} - {0.0, 1.0}:
        assert abs(successes / n - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), abs=1e-9)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (1, -1), (5, 4), (-1, 4), (0, math.nan), (1, math.inf)])
def test_wilson_refuses_impossible_counts(successes: float, trials: float) -> None:
    with pytest.raises(ConfigError, match="trial"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.5])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ConfigError, match=r"such as 0\.95"):
        wilson_interval(1, 2, confidence)


# Attempts clustered in tasks


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_one_attempt_per_task_is_wilson(outcomes: list[int]) -> None:
    clustered, wilson = success_rate(single(outcomes)), wilson_interval(sum(outcomes), len(outcomes))
    assert clustered.value == wilson.value
    assert clustered.low == pytest.approx(wilson.low, abs=1e-12)
    assert clustered.high == pytest.approx(wilson.high, abs=1e-12)


def test_identical_attempts_count_once() -> None:
    # Four attempts that always agree hold the information of one: V = p (1 - p) / T, so the effective number is T.
    outcomes = [1, 1, 0, 1, 0, 0, 1, 1, 1, 0]
    repeated = success_rate([Tally(4 * outcome, 4) for outcome in outcomes])
    assert repeated.low == pytest.approx(wilson_interval(6, 10).low, abs=1e-12)
    assert repeated.high == pytest.approx(wilson_interval(6, 10).high, abs=1e-12)


def test_effective_number_by_hand() -> None:
    # c = (2, 1, 0, 3), n = (2, 2, 2, 4): N = 10, p = 0.6; residuals c - p n = 0.8, -0.2, -1.2, 0.6.
    # V = (0.64 + 0.04 + 1.44 + 0.36) / 100 = 0.0248; p (1 - p) / V = 0.24 / 0.0248 = 9.677419...
    estimate = success_rate([Tally(2, 2), Tally(1, 2), Tally(0, 2), Tally(3, 4)])
    expected = wilson_interval(0.6 * 0.24 / 0.0248, 0.24 / 0.0248)
    assert estimate.value == pytest.approx(0.6, abs=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_all_successes_count_tasks_not_attempts() -> None:
    assert success_rate([Tally(8, 8)] * 10).low == pytest.approx(wilson_interval(10, 10).low, abs=1e-12)
    assert success_rate([Tally(0, 8)] * 10).high == pytest.approx(wilson_interval(0, 10).high, abs=1e-12)


def test_one_task_is_one_trial() -> None:
    estimate = success_rate([Tally(4, 8)])
    assert (estimate.low, estimate.high) == pytest.approx(
        (wilson_interval(0.5, 1).low, wilson_interval(0.5, 1).high), abs=1e-12
    )


def test_anticorrelated_attempts_earn_nothing_beyond_their_number() -> None:
    # Every task 1 of 2: no variance between tasks at all; the effective number is capped at the 20 attempts.
    assert success_rate([Tally(1, 2)] * 10).low == pytest.approx(wilson_interval(10, 20).low, abs=1e-12)


def simulated_coverage(num_tasks: int, attempts: int, a: float, b: float) -> tuple[float, float]:
    """Share of clustered and of plain Wilson intervals that hold the true rate, task difficulty ~ Beta(a, b)."""
    rng = np.random.default_rng(7)
    clustered = plain = 0
    for _ in range(REPEATS):
        successes = rng.binomial(attempts, rng.beta(a, b, num_tasks))
        estimate = success_rate([Tally(int(s), attempts) for s in successes])
        naive = wilson_interval(int(successes.sum()), num_tasks * attempts)
        clustered += estimate.low <= a / (a + b) <= estimate.high
        plain += naive.low <= a / (a + b) <= naive.high
    return clustered / REPEATS, plain / REPEATS


@pytest.mark.parametrize(
    ("num_tasks", "attempts", "a", "b"), [(40, 8, 1.0, 1.0), (40, 8, 0.4, 0.1), (100, 4, 2.0, 1.0)]
)
def test_coverage_is_as_promised_where_plain_wilson_fails(num_tasks: int, attempts: int, a: float, b: float) -> None:
    clustered, plain = simulated_coverage(num_tasks, attempts, a, b)
    assert clustered == pytest.approx(0.95, abs=0.025)  # the standard error of 800 repeats is 0.008
    assert plain < 0.90


def test_no_task_is_an_error() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        success_rate([])


@pytest.mark.parametrize(("successes", "attempts"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_tally(successes: int, attempts: int) -> None:
    with pytest.raises(ConfigError, match=f"got {successes} of {attempts}"):
        Tally(successes, attempts)


# pass@k


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_counts_subsets(n: int) -> None:
    # The definition: of all subsets of k attempts, the share that holds a success.
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
        assert pass_at_k(correct, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    # E over c ~ Binomial(n, p) must be 1 - (1 - p)^k; the plug-in 1 - (1 - c/n)^k is not (negative control).
    p, n, k = 0.3, 6, 4
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(q * pass_at_k(c, n, k) for c, q in enumerate(chance)) == pytest.approx(truth, abs=1e-12)
    assert abs(sum(q * (1 - (1 - c / n) ** k) for c, q in enumerate(chance)) - truth) > 0.03


def test_pass_at_k_survives_large_numbers() -> None:
    # C(100000, 1000) has 2,400 digits; Python's integers give the exact value.
    exact = 1 - math.comb(99_900, 1000) / math.comb(100_000, 1000)
    assert pass_at_k(100, 100_000, 1000) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("correct", "n", "k"), [(1, 4, 0), (1, 4, 5), (5, 4, 1), (0, 0, 1)])
def test_pass_at_k_refuses_what_it_cannot_know(correct: int, n: int, k: int) -> None:
    with pytest.raises(ConfigError):
        pass_at_k(correct, n, k)


def test_mean_pass_at_one_is_the_success_rate() -> None:
    tallies = [Tally(1, 4), Tally(4, 4), Tally(0, 4), Tally(2, 4)]
    one, rate = mean_pass_at_k(tallies, 1), success_rate(tallies)
    assert (one.value, one.low, one.high) == pytest.approx((rate.value, rate.low, rate.high), abs=1e-12)


def test_mean_pass_at_all_attempts_is_wilson_of_tasks_solved_once() -> None:
    # k = n: a task counts 1 if any attempt succeeded. Three of four tasks did.
    estimate = mean_pass_at_k([Tally(1, 4), Tally(4, 4), Tally(0, 4), Tally(2, 4)], 4)
    assert estimate.value == 0.75
    assert (estimate.low, estimate.high) == pytest.approx((wilson_interval(3, 4).low, wilson_interval(3, 4).high))


# Two policies on the same tasks


def mcnemar(num_better: int, num_worse: int) -> float:
    """Exact McNemar: twice the binomial tail at one half, by its textbook formula."""
    n, extreme = num_better + num_worse, max(num_better, num_worse)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(extreme, n + 1)) / 2**n)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (12, 2), (2, 12), (30, 1), (60, 0)])
def test_p_value_is_mcnemar_for_single_attempts(better: int, worse: int) -> None:
    first = single([0] * better + [1] * worse + [1] * 10 + [0] * 10)
    second = single([1] * better + [0] * worse + [1] * 10 + [0] * 10)
    result = paired_difference(first, second)
    assert result.p_value == pytest.approx(mcnemar(better, worse), rel=1e-9)
    assert (result.num_better, result.num_worse, result.num_tasks) == (better, worse, better + worse + 20)


def test_p_value_by_hand() -> None:
    # 6 better, 1 worse: 2 * (C(7,6) + C(7,7)) / 2^7 = 16 / 128
    assert paired_difference(single([0] * 6 + [1]), single([1] * 6 + [0])).p_value == pytest.approx(0.125, abs=1e-12)


@given(st.lists(st.tuples(tally, tally), min_size=1, max_size=9))
def test_p_value_counts_sign_flips(pairs: list[tuple[Tally, Tally]]) -> None:
    # Brute force: of all 2^T ways to sign the differences, the share at least as far from zero as what was seen.
    differences = [b.rate - a.rate for a, b in pairs]
    seen = abs(sum(differences)) - 1e-9
    flips = itertools.product([-1, 1], repeat=len(pairs))
    expected = np.mean([abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= seen for signs in flips])
    assert paired_difference([a for a, _ in pairs], [b for _, b in pairs]).p_value == pytest.approx(expected, abs=1e-9)


def test_adjusted_interval_by_hand() -> None:
    # 12 better, 2 worse of 40 tasks: with the pseudo tasks 13/42 and 3/42, so the center is 10/42 = 0.238095,
    # the variance (16/42 - (10/42)^2) / 42 = 0.00772055, half = 1.959964 * 0.0878667 = 0.172215.
    first, second = single([0] * 12 + [1] * 2 + [1] * 26), single([1] * 12 + [0] * 2 + [1] * 26)
    difference = paired_difference(first, second).difference
    assert difference.value == pytest.approx(0.25, abs=1e-12)
    assert difference.low == pytest.approx(0.238095 - 0.172215, abs=2e-6)
    assert difference.high == pytest.approx(0.238095 + 0.172215, abs=2e-6)


def test_no_difference_seen_is_not_certainty() -> None:
    # 100 equal tasks: half = z sqrt(2/102 / 102) = 1.959964 * 0.0138648
    difference = paired_difference(single([1] * 100), single([1] * 100)).difference
    assert (difference.low, difference.high) == pytest.approx((-0.0271745, 0.0271745), abs=1e-6)


@given(st.lists(st.tuples(tally, tally), min_size=1, max_size=20))
def test_swapping_the_policies_flips_the_sign(pairs: list[tuple[Tally, Tally]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    forward, backward = paired_difference(first, second), paired_difference(second, first)
    assert forward.difference.value == pytest.approx(-backward.difference.value, abs=1e-12)
    assert forward.difference.low == pytest.approx(-backward.difference.high, abs=1e-12)
    assert forward.p_value == pytest.approx(backward.p_value, abs=1e-12)
    assert (forward.num_better, forward.num_worse) == (backward.num_worse, backward.num_better)
    assert forward.difference.low <= forward.difference.value <= forward.difference.high


def simulate_pairs(num_tasks: int, only_first: float, only_second: float) -> tuple[float, float]:
    """Coverage of the interval and share of p-values below 0.05; the rest of the tasks are solved by both."""
    rng, covered, found = np.random.default_rng(3), 0, 0
    for _ in range(REPEATS):
        draw = rng.random(num_tasks)
        first = single([int(u >= only_second) for u in draw])
        second = single([int(not only_second <= u < only_second + only_first) for u in draw])
        result = paired_difference(first, second)
        covered += result.difference.low <= only_second - only_first <= result.difference.high
        found += result.p_value <= 0.05
    return covered / REPEATS, found / REPEATS


def test_paired_interval_covers_and_the_test_keeps_its_level() -> None:
    covered, found = simulate_pairs(60, 0.1, 0.1)
    assert covered == pytest.approx(0.96, abs=0.025)
    assert found <= 0.05
    assert simulate_pairs(60, 0.02, 0.12)[0] == pytest.approx(0.95, abs=0.025)


def test_minimum_detectable_difference_is_found_in_four_of_five_cases() -> None:
    discordance, num_tasks = 0.25, 300
    effect = minimum_detectable_difference(num_tasks, discordance)
    _, found = simulate_pairs(num_tasks, (discordance - effect) / 2, (discordance + effect) / 2)
    assert found == pytest.approx(0.8, abs=0.06)  # the exact test is a little conservative
    _, found = simulate_pairs(num_tasks, (discordance - effect / 2) / 2, (discordance + effect / 2) / 2)
    assert found < 0.5


@pytest.mark.parametrize(("num_tasks", "discordance", "power"), [(200, 0.3, 0.8), (50, 0.5, 0.9), (1000, 0.05, 0.8)])
def test_minimum_detectable_difference_inverts_connor(num_tasks: int, discordance: float, power: float) -> None:
    z_power = {0.8: 0.8416212335729143, 0.9: 1.2815515655446004}[power]
    d = minimum_detectable_difference(num_tasks, discordance, power=power)
    needed = (Z * math.sqrt(discordance) + z_power * math.sqrt(discordance - d * d)) ** 2 / d**2
    assert needed == pytest.approx(num_tasks, rel=1e-9)


def test_comparison_reports_what_it_could_have_found() -> None:
    # 12 better and 2 worse of 40: mean square with the pseudo tasks (12 + 2 + 2) / 42.
    result = paired_difference(single([0] * 12 + [1] * 28), single([1] * 12 + [0] * 2 + [1] * 26))
    assert result.minimum_detectable == pytest.approx(minimum_detectable_difference(40, 16 / 42), abs=1e-12)


def test_comparison_needs_the_same_tasks() -> None:
    with pytest.raises(ConfigError, match="got 2 and 1"):
        paired_difference(single([1, 0]), single([1]))
    with pytest.raises(ConfigError, match="same tasks"):
        paired_difference([], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.3), "num_tasks=0"),
        ((10, 0.0), "discordance"),
        ((10, 1.5), "discordance"),
        ((10, 0.3, 0.95, 1.0), "power"),
    ],
)
def test_minimum_detectable_difference_refuses(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        minimum_detectable_difference(*arguments)  # type: ignore[arg-type]
