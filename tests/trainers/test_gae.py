"""Generalized advantages: by hand, across gaps, their limits, and the exact values that leave nothing to credit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import GARBAGE, make_batch, make_case
from torch import Tensor

from agentrl.errors import ConfigError
from agentrl.trainers import RECIPES, Feedback, Recipe
from agentrl.trainers.feedback import reward_to_go
from agentrl.trainers.gae import GAE, generalized_advantages
from agentrl.trainers.objective import compute_advantages, gather_feedback

F64 = torch.float64
UNIT = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=F64)


def random_rows(seed: int, width: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask with gaps; garbage outside it."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(5, width, generator=draw) < 0.6
    garbage = torch.tensor(GARBAGE, dtype=F64)[torch.randint(len(GARBAGE), mask.shape, generator=draw)]
    rewards, values = (torch.randn(mask.shape, generator=draw, dtype=F64) for _ in range(2))
    return torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask


def test_by_hand() -> None:
    # V = .5 .25 1, r = 0 .5 2, gamma .5, lam .5:
    # delta_2 = 2 - 1 = 1; delta_1 = .5 + .5 * 1 - .25 = .75; delta_0 = 0 + .5 * .25 - .5 = -.375
    # A_2 = 1; A_1 = .75 + .25 * 1 = 1; A_0 = -.375 + .25 * 1 = -.125
    given = generalized_advantages(
        rows([0.0, 0.5, 2.0]), rows([0.5, 0.25, 1.0]), torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5
    )
    assert given.tolist() == [[-0.125, 1.0, 1.0]]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), UNIT, UNIT)
def test_gaps_take_no_time_and_their_content_does_not_matter(seed: int, gamma: float, lam: float) -> None:
    """Tool tokens left out are tool tokens skipped: the same numbers as without the gaps, row by row."""
    rewards, values, mask = random_rows(seed)
    given = generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    assert (given[~mask] == 0).all()
    for i in range(len(mask)):
        kept = mask[i]
        dense = torch.ones(1, int(kept.sum()), dtype=torch.bool)
        alone = generalized_advantages(rewards[i, kept][None], values[i, kept][None], dense, gamma=gamma, lam=lam)
        torch.testing.assert_close(given[i, kept], alone[0], rtol=0, atol=1e-12)


def test_a_pass_through_the_gap_would_differ() -> None:
    """Negative control: with a tool token of value 5 in the middle counted as a step, the credit is another."""
    rewards, values = rows([0.0, 0.0, 1.0]), rows([0.5, 5.0, 0.5])
    gap = torch.tensor([[True, False, True]])
    right = generalized_advantages(rewards, values, gap, gamma=1.0, lam=0.0)
    naive = generalized_advantages(rewards, values, torch.ones_like(gap), gamma=1.0, lam=0.0)
    assert right.tolist() == [[0.0, 0.0, 0.5]]  # .5 - .5; 1 - .5
    assert naive[0, 0] == 4.5  # 5 - .5: credit for what the tool said


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), UNIT)
def test_lambda_1_is_the_return_minus_the_value(seed: int, gamma: float) -> None:
    rewards, values, mask = random_rows(seed)
    given = generalized_advantages(rewards, values, mask, gamma=gamma, lam=1.0)
    expected = reward_to_go(rewards, mask, gamma=gamma) - torch.where(mask, values, 0.0)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), UNIT, UNIT)
def test_exact_values_leave_nothing_to_credit(seed: int, gamma: float, lam: float) -> None:
    """V = the discounted rewards still to come, of a world without chance."""
    rewards, _, mask = random_rows(seed)
    values = reward_to_go(rewards, mask, gamma=gamma)
    assert generalized_advantages(rewards, values, mask, gamma=gamma, lam=lam).abs().max() <= 1e-12


def ppo(**changes: object) -> Recipe:
    recipe = RECIPES["ppo"]
    assert isinstance(recipe, Recipe)
    return replace(recipe, kl=None, advantage=GAE(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_without_values_ppo_is_reward_to_go(seed: int) -> None:
    """lambda = gamma = 1, V = 0, one reward at the end: every token gets the outcome."""
    case = make_case(seed)
    nothing = case.gather(torch.zeros(len(case.new), dtype=F64))
    given = compute_advantages(ppo(whiten=False), case.batch, values=nothing)
    assert torch.equal(given, torch.where(case.batch.mask, case.batch.rewards[:, None], 0.0))


def test_whitening_comes_after_the_targets() -> None:
    # One trajectory of two tokens, reward 1, values .5 and .25: A = .5 .75, targets 1 1.
    # mean .625, var (ddof 1) 2 * .125^2 = .03125; .125 / sqrt(.03125 + 1e-8) = .70710667
    batch = make_batch([2], [1.0])
    feedback = gather_feedback(ppo(), batch, values=rows([0.5, 0.25]))
    advantage = GAE(gamma=1.0, lam=1.0)
    assert advantage(feedback).tolist() == [[pytest.approx(-0.70710667, abs=1e-8), pytest.approx(0.70710667, abs=1e-8)]]
    assert advantage.value_targets(feedback).tolist() == [[1.0, 1.0]]
    assert GAE(whiten=False)(feedback).tolist() == [[0.5, 0.75]]


def test_a_truncated_trajectory_ends_like_any_other() -> None:
    """The limit is part of the task: nothing is expected behind it."""
    values = rows([0.5, 0.25], [0.5, 0.25])
    cut = make_batch([2, 2], [1.0, 1.0], truncated=[False, True])
    given = compute_advantages(ppo(whiten=False), cut, values=values)
    assert given[0].tolist() == given[1].tolist() == [0.5, 0.75]


def test_the_targets_hold_shaping_and_turn_rewards() -> None:
    """Every reward where it falls: two turns of rewards .5 and 2, and token costs of .125."""
    batch = replace(make_batch([3], [2.5]), turn_rewards=rows([0.5, 0.0, 2.0]))
    feedback = Feedback(
        batch=batch,
        rewards=batch.rewards,
        token_rewards=torch.full((1, 3), -0.125, dtype=F64),
        values=torch.zeros(1, 3),
    )
    # from the end: 2 - .125 = 1.875; 1.875 - .125 = 1.75; 1.75 + .5 - .125 = 2.125
    assert GAE().value_targets(feedback).tolist() == [[2.125, 1.75, 1.875]]


def test_a_critic_is_asked_for() -> None:
    assert RECIPES["ppo"].needs == ("critic", "reference")
    assert RECIPES["trpo"].needs == ("critic",)
    with pytest.raises(ValueError, match="needs a critic: pass values"):
        compute_advantages(ppo(), make_batch([2], [1.0]))


@pytest.mark.parametrize("name", ["gamma", "lam"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} between 0 and 1"):
        GAE(**{name: value})


def test_shapes_are_checked() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="values must have the mask's shape"):
        generalized_advantages(rows([1.0, 1.0]), rows([1.0]), mask, gamma=1.0, lam=1.0)
    assert generalized_advantages(
        torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), gamma=1.0, lam=1.0
    ).shape == (2, 0)
