"""Advantages from turns, states and trees: by hand, and what must not change them."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from path_cases import make_batch
from step_cases import make_step_case

from agentrl.errors import ConfigError
from agentrl.rollout.plan import GroupPlan
from agentrl.trainers import GroupNormalized, PathBatch, Recipe, compute_advantages
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.step_advantages import FirstTurn, ProcessNormalized, StateGroups, TreeNormalized
from agentrl.trainers.turns import at_tokens, turn_mask, turn_states, turn_sums

F64 = torch.float64
ESTIMATORS = [StateGroups(), StateGroups(scale=True), FirstTurn(), TreeNormalized(), ProcessNormalized()]


def with_advantage(advantage: Any) -> Recipe:
    return replace(grpo(), advantage=advantage)


def turned(turns: list[list[int]], rewards: list[list[float]], **columns: Any) -> PathBatch:
    """One task; `turns` has the turn of each token, `rewards` one number per turn."""
    batch = make_batch([len(row) for row in turns], [sum(row) for row in rewards])
    turn, placed = torch.zeros_like(batch.turn), torch.zeros_like(batch.turn_rewards)
    for i, row in enumerate(turns):
        turn[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        for number, reward in enumerate(rewards[i]):
            placed[i, len(row) - 1 - row[::-1].index(number)] = reward
    return replace(batch, turn=turn, turn_rewards=placed, **columns)


def of_tokens(advantage: Any, batch: PathBatch) -> list[list[float]]:
    """The advantages of the tokens of every trajectory."""
    values = compute_advantages(with_advantage(advantage), batch)
    return [row[mask].tolist() for row, mask in zip(values, batch.mask, strict=True)]


class TestTurns:
    BATCH = replace(
        make_batch([4, 3], [0.0, 0.0]),
        # Column 1 of the first row and column 0 of the second are padding and hold nonsense.
        mask=torch.tensor([[True, False, True, True], [False, True, True, False]]),
        turn=torch.tensor([[0, 7, 0, 2], [9, 0, 1, -3]]),
        states=torch.tensor([[5, 8, 5, -1], [8, 6, 5, 8]]),
    )

    def test_sums(self) -> None:
        values = torch.tensor([[1.0, math.nan, 2.0, 4.0], [math.inf, 8.0, 16.0, -math.inf]])
        assert turn_sums(values, self.BATCH).tolist() == [[3.0, 0.0, 4.0], [8.0, 16.0, 0.0]]
        assert turn_mask(self.BATCH).tolist() == [[True, False, True], [True, True, False]]
        with pytest.raises(ValueError, match="values must have the mask's shape"):
            turn_sums(torch.zeros(2, 3), self.BATCH)

    def test_states(self) -> None:
        assert turn_states(self.BATCH).tolist() == [[5, -1, -1], [6, 5, -1]]

    def test_at_tokens(self) -> None:
        turns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        assert at_tokens(turns, self.BATCH).tolist() == [[1.0, 0.0, 1.0, 3.0], [0.0, 4.0, 5.0, 0.0]]

    def test_without_any_token(self) -> None:
        batch = replace(make_batch([1], [0.0]), mask=torch.zeros(1, 1, dtype=torch.bool))
        assert not turn_mask(batch).any()
        assert at_tokens(torch.ones(1, 1), batch).tolist() == [[0.0]]


class TestStateGroups:
    # Two trajectories of two turns. Returns 1 and 0. At gamma .5 the returns from the turns are
    # 0 + .5 * 1 = .5 and 1 in the first, 0 and 0 in the second.
    TURNS, REWARDS = [[0, 0, 1], [0, 1, 1]], [[0.0, 1.0], [0.0, 0.0]]

    def states(self, first: list[int], second: list[int]) -> torch.Tensor:
        return torch.tensor([first, second])

    def test_by_hand(self) -> None:
        # Turns 0 share state 3: mean .25, so +-.25. Turns 1 are alone in 4 and 5: 0. Episodes: +-.5.
        batch = turned(self.TURNS, self.REWARDS, states=self.states([3, 3, 4], [3, 5, 5]))
        assert of_tokens(StateGroups(gamma=0.5), batch) == [[0.75, 0.75, 0.5], [-0.75, -0.5, -0.5]]
        assert of_tokens(StateGroups(gamma=0.5, weight=2.0), batch) == [[1.0, 1.0, 0.5], [-1.0, -0.5, -0.5]]

    def test_by_hand_with_standard_deviations(self) -> None:
        # Two values a > b have mean +-(a - b) / 2 and std (a - b) / sqrt(2): +-1 / sqrt(2) for both parts.
        batch = turned(self.TURNS, self.REWARDS, states=self.states([3, 3, 4], [3, 5, 5]))
        root = 1 / math.sqrt(2)
        (first, second) = of_tokens(StateGroups(gamma=0.5, scale=True, eps=0.0), batch)
        assert first == pytest.approx([2 * root, 2 * root, root])
        assert second == pytest.approx([-2 * root, -root, -root])

    def test_a_state_met_twice_on_one_trajectory(self) -> None:
        # .5, 1 and 0 in one state: mean .5. The fourth turn is alone.
        batch = turned(self.TURNS, self.REWARDS, states=self.states([3, 3, 3], [3, 5, 5]))
        assert of_tokens(StateGroups(gamma=0.5), batch) == [[0.5, 0.5, 1.0], [-1.0, -0.5, -0.5]]

    def test_unknown_states_are_equal_to_none(self) -> None:
        batch = turned(self.TURNS, self.REWARDS, states=self.states([3, 3, -1], [-1, -1, -1]))
        assert of_tokens(StateGroups(gamma=0.5), batch) == [[0.5] * 3, [-0.5] * 3]

    def test_no_state_at_all(self) -> None:
        batch = turned(self.TURNS, self.REWARDS)
        with pytest.raises(ConfigError, match=r"named no state in this batch. Override ToolEnv.state_key"):
            of_tokens(StateGroups(), batch)

    def test_states_of_padding_do_not_count(self) -> None:
        batch = turned(self.TURNS, self.REWARDS, states=self.states([3, 3, 4], [3, 5, 5]))
        longer = torch.nn.functional.pad
        padded = replace(
            batch,
            mask=longer(batch.mask, (0, 1)),
            turn=longer(batch.turn, (0, 1), value=3),
            states=longer(batch.states, (0, 1), value=3),
            turn_rewards=longer(batch.turn_rewards, (0, 1), value=math.nan),
        )
        assert of_tokens(StateGroups(gamma=0.5), padded) == of_tokens(StateGroups(gamma=0.5), batch)

    def test_it_says_what_it_needs(self) -> None:
        assert RECIPES["gigpo"].needs_states
        assert "state keys" in RECIPES["gigpo"].needs
        assert not RECIPES["mt_grpo"].needs_states


class TestFirstTurn:
    def test_by_hand(self) -> None:
        # First turns .5 and 0, the rest 0 and 1: z-scores +-1/sqrt(2) each, of opposite sign.
        batch = turned([[0, 0, 1], [0, 1, 1]], [[0.5, 0.0], [0.0, 1.0]])
        root = 1 / math.sqrt(2)
        (first, second) = of_tokens(FirstTurn(weight=3.0, eps=0.0), batch)
        assert first == pytest.approx([2 * root, 2 * root, -root])
        assert second == pytest.approx([-2 * root, root, root])

    def test_an_only_turn_has_an_outcome_and_no_reward_of_its_own(self) -> None:
        # First turns 0 (not 1) and .5, outcomes 1 and 0: 1/sqrt(2) - 1/sqrt(2) = 0 everywhere in the first.
        batch = turned([[0, 0], [0, 1]], [[1.0], [0.5, 0.0]])
        root = 1 / math.sqrt(2)
        (first, second) = of_tokens(FirstTurn(eps=0.0), batch)
        assert first == pytest.approx([0.0, 0.0])
        assert second == pytest.approx([0.0, -root])

    def test_with_outcomes_only_it_is_grpo(self) -> None:
        batch = turned([[0, 1, 2], [0, 0], [0, 1]], [[0.0, 0.0, 1.0], [0.25], [0.0, 0.5]])
        assert of_tokens(FirstTurn(), batch) == of_tokens(GroupNormalized(), batch)


class TestTreeNormalized:
    # Tree 0 has leaves 1, 0; tree 1 has 0, 0; tree 2 a single 1. All five: mean .4, deviations .6 (twice) and -.4,
    # variance (2 * .36 + 3 * .16) / 4 = .3.
    BATCH = replace(make_batch([1] * 5, [1.0, 0.0, 0.0, 0.0, 1.0]), root=torch.tensor([0, 0, 1, 1, 2]))

    def test_by_hand(self) -> None:
        root, high, low = 1 / math.sqrt(2), 0.6 / math.sqrt(0.3), -0.4 / math.sqrt(0.3)
        rows = of_tokens(TreeNormalized(eps=0.0), self.BATCH)
        assert [row[0] for row in rows] == pytest.approx([root + high, -root + low, low, low, high])
        rows = of_tokens(TreeNormalized(inter=False, eps=0.0), self.BATCH)
        assert [row[0] for row in rows] == pytest.approx([root, -root, 0.0, 0.0, 0.0])

    def test_equal_numbers_in_different_tasks_are_different_trees(self) -> None:
        two = replace(make_batch([1] * 4, [1.0, 0.0, 5.0, 3.0], group=[0, 0, 1, 1]), root=torch.tensor([0, 0, 0, 0]))
        root = 1 / math.sqrt(2)
        rows = of_tokens(TreeNormalized(inter=False, eps=0.0), two)
        assert [row[0] for row in rows] == pytest.approx([root, -root, root, -root])

    @pytest.mark.parametrize("seed", range(4))
    def test_the_released_code_normalizes_twice_to_the_same_end(self, seed: int) -> None:
        rng = random.Random(seed)
        batch = replace(
            make_batch([1] * 12, [rng.random() for _ in range(12)], group=[0] * 6 + [1] * 6),
            root=torch.tensor([rng.randint(0, 1) for _ in range(12)]),
        )
        by_task = compute_advantages(with_advantage(GroupNormalized(eps=0.0)), batch)[:, 0]
        twice = of_tokens(TreeNormalized(inter=False, eps=0.0), replace(batch, rewards=by_task))
        assert [row[0] for row in twice] == pytest.approx(
            [row[0] for row in of_tokens(TreeNormalized(inter=False, eps=0.0), batch)]
        )


class TestProcessNormalized:
    def test_by_hand(self) -> None:
        # Rewards 1, 0 and 2 of all turns: mean 1, std 1. Scores 0, -1 | 1; sums of those still to come -1, -1 | 1.
        batch = turned([[0, 1, 1], [0, 0]], [[1.0, 0.0], [2.0]])
        assert of_tokens(ProcessNormalized(eps=0.0), batch) == [[-1.0, -1.0, -1.0], [1.0, 1.0]]
        # Rewards 0, 3 | 0, 1: mean 1, std sqrt((1 + 4 + 1 + 0) / 3) = sqrt(2).
        batch = turned([[0, 1, 1], [0, 0, 1]], [[0.0, 3.0], [0.0, 1.0]])
        root = 1 / math.sqrt(2)
        (first, second) = of_tokens(ProcessNormalized(eps=0.0), batch)
        assert first == pytest.approx([root, 2 * root, 2 * root])
        assert second == pytest.approx([-root, -root, 0.0])

    def test_with_one_turn_each_it_is_grpo(self) -> None:
        batch = turned([[0], [0, 0], [0, 0, 0]], [[1.0], [0.25], [0.5]])
        assert of_tokens(ProcessNormalized(), batch) == of_tokens(GroupNormalized(), batch)


@pytest.mark.parametrize("advantage", ESTIMATORS, ids=lambda a: f"{type(a).__name__}-{getattr(a, 'scale', '')}")
class TestAll:
    def test_order_of_the_trajectories(self, advantage: Any) -> None:
        batch = make_step_case(0).case.batch
        order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(1))
        straight = compute_advantages(with_advantage(advantage), batch)[order]
        shuffled = compute_advantages(with_advantage(advantage), batch.rows(order))
        torch.testing.assert_close(straight, shuffled, atol=1e-12, rtol=0.0)

    def test_equal_rewards_give_exactly_nothing(self, advantage: Any) -> None:
        states = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 0, 1]])
        batch = turned([[0, 0, 1]] * 3, [[0.1, 0.1]] * 3, states=states)
        assert of_tokens(advantage, batch) == [[0.0] * 3] * 3

    def test_a_group_of_one_is_refused(self, advantage: Any) -> None:
        with pytest.raises(ConfigError, match="at least 2"):
            replace(with_advantage(advantage), sampling=GroupPlan(size=1))
