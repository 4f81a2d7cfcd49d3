"""The estimate of an entropy from its most probable tokens against the exact one."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.policies.vllm.entropy import entropy_from_top, entropy_gap, most_probable


@st.composite
def distributions(draw: Any) -> tuple[np.ndarray, int]:
    """A distribution, peaked or flat, and how many of its tokens are known."""
    size = draw(st.integers(2, 60))
    spread = draw(st.sampled_from([0.0, 0.5, 2.0, 8.0, 30.0]))
    logits = np.random.default_rng(draw(st.integers(0, 10_000))).normal(size=size) * spread
    probabilities = np.exp(logits - logits.max())
    return probabilities / probabilities.sum(), draw(st.integers(1, size))


@given(distributions())
def test_the_exact_entropy_is_between_the_bounds(case: tuple[np.ndarray, int]) -> None:
    probabilities, num_top = case
    positive = probabilities[probabilities > 0]
    exact = float(-(positive * np.log(positive)).sum())
    with np.errstate(divide="ignore"):
        top = most_probable(np.log(probabilities).tolist(), num_top)
    low, gap = entropy_from_top(top, len(probabilities)), entropy_gap(top, len(probabilities))
    assert low - 1e-9 <= exact <= low + gap + 1e-9


@given(distributions())
def test_it_is_exact_when_all_tokens_are_known(case: tuple[np.ndarray, int]) -> None:
    probabilities, _ = case
    positive = probabilities[probabilities > 0]
    top = most_probable(np.log(positive).tolist(), len(positive))
    exact = -(positive * np.log(positive)).sum()
    assert entropy_from_top(top, len(probabilities)) == pytest.approx(exact, abs=1e-9)


def test_uniform_distributions_by_hand() -> None:
    """V = 8, k = 2: 2 * (1/8) log 8 + (3/4) log(4/3) below, and (3/4) log 6 more makes log 8."""
    top = [math.log(1 / 8)] * 2
    low = 0.25 * math.log(8) + 0.75 * math.log(4 / 3)
    assert entropy_from_top(top, 8) == pytest.approx(low)
    assert entropy_gap(top, 8) == pytest.approx(0.75 * math.log(6))
    assert low + 0.75 * math.log(6) == pytest.approx(math.log(8))


def test_more_tokens_never_make_the_estimate_worse() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(50) * 0.2)
    logprobs = np.log(probabilities).tolist()
    exact = float(-(probabilities * np.log(probabilities)).sum())
    errors = [exact - entropy_from_top(most_probable(logprobs, k), 50) for k in range(1, 51)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[-1] == pytest.approx(0.0, abs=1e-12)


def test_the_sampled_token_outside_the_top_is_not_counted() -> None:
    """Three were asked for to get two: the improbable one was sampled, and would enlarge the sum of the known."""
    reported = [math.log(0.01), math.log(0.6), math.log(0.3)]
    assert most_probable(reported, 2) == [math.log(0.6), math.log(0.3)]
    assert entropy_from_top(most_probable(reported, 2), 100) == pytest.approx(
        -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1))
    )


@pytest.mark.parametrize("filler", [-math.inf, -9999.0, math.nan])
def test_fillers_are_no_tokens(filler: float) -> None:
    """Top-k sampling with k = 2 of five that were asked for: a certain distribution over two tokens, nothing else."""
    top = most_probable([math.log(0.5), filler, math.log(0.5), filler], 5)
    assert entropy_from_top(top, 1000) == pytest.approx(math.log(2))
    assert entropy_gap(top, 1000) == 0.0


def test_rounding_never_makes_it_negative() -> None:
    """Float32 log-probabilities may add up to more than 1."""
    assert entropy_from_top([1e-7], 1000) == 0.0
    assert entropy_from_top([0.0, -40.0], 1000) >= 0.0
