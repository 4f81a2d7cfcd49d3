"""Group statistics, their exact zeros, and the spreading over shared tokens."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import make_batch, make_case

from agentrl.trainers import Feedback, GroupCentered, GroupNormalized, SharedMean
from agentrl.trainers.advantages import group_centered, group_mean, group_normalized, mean_over_shared

F64 = torch.float64
REWARDS = st.lists(st.tuples(st.integers(-3, 3), st.floats(-10, 10, width=32)), min_size=1, max_size=12)


def columns(rows: list[tuple[int, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([r for _, r in rows], dtype=F64), torch.tensor([g for g, _ in rows])


class TestGroupMean:
    def test_by_hand_with_interleaved_groups(self) -> None:
        rewards, group = torch.tensor([1.0, 10.0, 3.0, 20.0, 5.0]), torch.tensor([7, -2, 7, -2, 7])
        # (1 + 3 + 5) / 3 = 3 and (10 + 20) / 2 = 15
        assert group_mean(rewards, group).tolist() == [3.0, 15.0, 3.0, 15.0, 3.0]

    @settings(max_examples=60, deadline=None)
    @given(REWARDS)
    def test_equals_the_loop(self, rows: list[tuple[int, float]]) -> None:
        for (task, _), mean in zip(rows, group_mean(*columns(rows)).tolist(), strict=True):
            assert mean == pytest.approx(statistics.fmean(r for t, r in rows if t == task), abs=1e-12)


class TestGroupNormalized:
    def test_by_hand(self) -> None:
        # mean 2, deviations -2 0 2, variance 8 / 2 = 4 (ddof 1) or 8 / 3 (ddof 0)
        rewards, group = torch.tensor([0.0, 2.0, 4.0], dtype=F64), torch.zeros(3, dtype=torch.int64)
        assert group_normalized(rewards, group, eps=0.0).tolist() == [-1.0, 0.0, 1.0]
        assert group_normalized(rewards, group, eps=2.0).tolist() == [-0.5, 0.0, 0.5]
        assert group_normalized(rewards, group, eps=0.0, ddof=0)[2].item() == pytest.approx(2 / math.sqrt(8 / 3))

    @settings(max_examples=60, deadline=None)
    @given(REWARDS, st.sampled_from([0, 1]))
    def test_equals_the_loop(self, rows: list[tuple[int, float]], ddof: int) -> None:
        std_of = (statistics.pstdev, statistics.stdev)[ddof]
        for (task, reward), value in zip(rows, group_normalized(*columns(rows), ddof=ddof).tolist(), strict=True):
            members = [r for t, r in rows if t == task]
            expected = 0.0
            if len(set(members)) > 1:
                expected = (reward - statistics.fmean(members)) / (std_of(members) + 1e-6)
            assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)

    @pytest.mark.parametrize("value", [0.1, 1 / 3, 1e8 + 0.1, -0.7])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equal_rewards_give_exactly_zero(self, value: float, dtype: torch.dtype) -> None:
        rewards, group = torch.full((7,), value, dtype=dtype), torch.zeros(7, dtype=torch.int64)
        for eps in (0.0, 1e-6):
            assert group_normalized(rewards, group, eps=eps).tolist() == [0.0] * 7
        assert group_centered(rewards, group).tolist() == [0.0] * 7

    def test_the_mean_of_equal_rewards_does_round(self) -> None:
        """Why the zero above has to be made: 3 * 0.1 / 3 != 0.1 in floating point."""
        rewards = torch.full((3,), 0.1, dtype=F64)
        assert (rewards - rewards.sum() / 3).abs().max() > 0

    def test_a_group_of_one_gets_zero(self) -> None:
        rewards, group = torch.tensor([5.0, 1.0, 0.0]), torch.tensor([3, 1, 1])
        assert group_normalized(rewards, group)[0].item() == 0.0
        assert group_centered(rewards, group).tolist() == [0.0, 0.5, -0.5]

    def test_shift_and_scale_of_the_rewards_do_not_matter(self) -> None:
        case = make_case(0)
        plain = group_normalized(case.batch.rewards, case.batch.group, eps=0.0)
        moved = group_normalized(3.0 * case.batch.rewards - 5.0, case.batch.group, eps=0.0)
        torch.testing.assert_close(moved, plain, rtol=0, atol=1e-9)

    def test_groups_do_not_see_each_other(self) -> None:
        case = make_case(1)
        changed = torch.where(case.batch.group == 3, case.batch.rewards * 100, case.batch.rewards)
        before, after = (group_normalized(r, case.batch.group) for r in (case.batch.rewards, changed))
        assert torch.equal(before[case.batch.group != 3], after[case.batch.group != 3])


class TestMeanOverShared:
    def test_a_tree_of_three(self) -> None:
        # token 0 on all three paths: (3 + 0 - 6) / 3 = -1; token 1 on two: (3 + 0) / 2 = 1.5; the others alone
        batch = make_batch([3, 3, 2], [0, 0, 0], token_index=[[0, 1, 2], [0, 1, 3], [0, 4]])
        own = torch.tensor([3.0, 0.0, -6.0], dtype=F64)[:, None].expand(3, 3)
        mean = mean_over_shared(own, batch.token_index, batch.mask)
        assert mean.tolist() == [[-1.0, 1.5, 3.0], [-1.0, 1.5, 0.0], [-1.0, -6.0, 0.0]]

    def test_padding_that_points_at_token_0_does_not_count(self) -> None:
        """`token_index` is 0 where padded, and 0 is also a real token."""
        batch = make_batch([1, 3], [0, 0], token_index=[[0], [1, 2, 3]])
        own = torch.tensor([[1.0, math.nan, math.inf], [9.0, 9.0, 9.0]])
        assert mean_over_shared(own, batch.token_index, batch.mask)[0].tolist() == [1.0, 0.0, 0.0]

    @pytest.mark.parametrize("seed", range(4))
    def test_conserves_the_sum_and_levels_the_copies(self, seed: int) -> None:
        case = make_case(seed)
        generator = torch.Generator().manual_seed(seed)
        own = torch.randn(case.batch.mask.shape, dtype=F64, generator=generator)
        mean = mean_over_shared(own, case.batch.token_index, case.batch.mask)
        assert mean[case.batch.mask].sum().item() == pytest.approx(own[case.batch.mask].sum().item(), abs=1e-12)
        for token in {token for path in case.paths for token in path}:
            copies = case.batch.mask & (case.batch.token_index == token)
            assert len(set(mean[copies].tolist())) == 1
            assert mean[copies][0].item() == pytest.approx(own[copies].mean().item(), abs=1e-12)

    def test_an_empty_batch_of_tokens(self) -> None:
        nothing = torch.zeros(2, 0, dtype=torch.int64)
        assert mean_over_shared(nothing.double(), nothing, nothing.bool()).shape == (2, 0)


class TestParts:
    def test_parts_read_returns_and_spread_them_over_the_row(self) -> None:
        batch = make_batch([2, 1], [1.0, 0.0])
        token_rewards = torch.tensor([[-0.5, -0.25], [-0.25, math.nan]], dtype=F64)
        feedback = Feedback(batch=batch, rewards=batch.rewards, token_rewards=token_rewards)
        # returns 1 - .75 = .25 and 0 - .25 = -.25 (the NaN is outside the mask): mean 0, std sqrt(.125)
        assert feedback.returns.tolist() == [0.25, -0.25]
        assert GroupCentered()(feedback).tolist() == [[0.25, 0.25], [-0.25, -0.25]]
        expected = 0.25 / (math.sqrt(0.125) + 1e-6)
        assert GroupNormalized()(feedback)[0].tolist() == pytest.approx([expected] * 2, abs=1e-9)

    def test_requirements_pass_through_the_shared_mean(self) -> None:
        assert SharedMean(GroupCentered()).min_group_size == GroupNormalized().min_group_size == 2
        assert not SharedMean(GroupCentered()).needs_critic


class TestChecks:
    def test_wrong_dtypes_and_shapes_are_named(self) -> None:
        ids, mask = torch.zeros(3, dtype=torch.int64), torch.ones(2, 2, dtype=torch.bool)
        with pytest.raises(TypeError, match=r"rewards must be a floating-point tensor, got torch\.int64"):
            group_mean(ids, ids)
        with pytest.raises(TypeError, match=r"group must be an int64 tensor, got torch\.float32"):
            group_centered(torch.zeros(3), torch.zeros(3))
        with pytest.raises(ValueError, match=r"both be \[B\], got \[2\] and \[3\]"):
            group_normalized(torch.zeros(2), ids)
        with pytest.raises(ValueError, match=r"advantages must have the mask's shape \[2, 2\], got \[2, 3\]"):
            mean_over_shared(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int64), mask)
        with pytest.raises(ValueError, match=r"token_index must be int64 \[2, 2\], got torch\.float32"):
            mean_over_shared(torch.zeros(2, 2), torch.zeros(2, 2), mask)
        with pytest.raises(TypeError, match="mask must be a bool tensor"):
            mean_over_shared(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64), mask.float())
        with pytest.raises(ValueError, match=r"mask must have shape \[B, L\], got \[4\]"):
            mean_over_shared(torch.zeros(4), torch.zeros(4, dtype=torch.int64), mask.flatten())
