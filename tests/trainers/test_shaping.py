"""The overlong penalty and dynamic sampling."""

from dataclasses import replace

import pytest
import reference_dapo
import torch
from path_cases import make_batch

from agentrl.errors import ConfigError
from agentrl.trainers import DropConstantRewards, OverlongPenalty, compute_advantages
from agentrl.trainers.recipes.dapo import dapo
from agentrl.trainers.shaping import overlong_penalty


def test_penalty_equals_the_three_branches_at_every_length() -> None:
    lengths = torch.arange(0, 40)
    penalties = overlong_penalty(lengths, max_length=30, cache=12)
    expected = [reference_dapo.overlong(n, 30, 12) for n in lengths.tolist()]
    assert penalties.tolist() == pytest.approx(expected, abs=1e-7)
    assert penalties.min() == -1.0
    assert penalties[:19].abs().max() == 0.0  # free up to 30 - 12 = 18 tokens


def test_penalty_counts_sampled_tokens_and_moves_the_advantage() -> None:
    """Two right answers, one overlong: without the penalty both have advantage 0, with it the long one is worse."""
    batch = make_batch([10, 3], [1.0, 1.0])
    penalty = OverlongPenalty(max_length=12, cache=4)
    assert penalty(batch).tolist() == [-0.5, 0.0]  # (12 - 4 - 10) / 4
    plain, shaped = (compute_advantages(replace(dapo(), shaping=s), batch) for s in ((), (penalty,)))
    assert plain.abs().max() == 0.0
    # rewards .5 and 1: mean .75, deviation .25, std sqrt(2 * .0625 / 1) = .353553, ratio .707105
    assert shaped[0, 0].item() == pytest.approx(-0.25 / (0.125**0.5 + 1e-6), abs=1e-9)
    assert shaped[1, 0].item() == pytest.approx(+0.25 / (0.125**0.5 + 1e-6), abs=1e-9)


def test_the_environments_reward_is_left_alone() -> None:
    batch = make_batch([10, 3], [1.0, 0.0])
    compute_advantages(replace(dapo(), shaping=(OverlongPenalty(max_length=12, cache=4),)), batch)
    assert batch.rewards.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("rewards", [[1.0, 1.0], [0.0, 0.0, 0.0], [0.1] * 5, [1.0], [], [0.0, 1.0], [0.3, 0.3, 0.31]])
def test_filter_drops_exactly_the_groups_without_contrast(rewards: list[float]) -> None:
    assert DropConstantRewards()(rewards) == reference_dapo.keeps(rewards)
    assert DropConstantRewards()(rewards) == (len(rewards) > 0 and max(rewards) > min(rewards))


def test_what_the_filter_drops_has_no_gradient() -> None:
    batch = make_batch([2, 2, 2, 2], [0.1, 0.1, 0.0, 1.0], group=[0, 0, 1, 1])
    kept = [DropConstantRewards()(batch.rewards[batch.group == g].tolist()) for g in (0, 1)]
    advantages = compute_advantages(dapo(), batch)
    assert kept == [False, True] == [bool((advantages[batch.group == g] != 0).any()) for g in (0, 1)]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="cache must be between 1 and max_length=10, got 11"):
        OverlongPenalty(max_length=10, cache=11)
    with pytest.raises(ConfigError, match="max_rounds must be at least 1, got 0"):
        DropConstantRewards(max_rounds=0)
    with pytest.raises(ValueError, match=r"lengths must be int64 \[B\], got torch\.float32"):
        overlong_penalty(torch.zeros(3), max_length=10, cache=2)
