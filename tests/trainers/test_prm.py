"""Step rewards: values from trees and from completions, their differences, and the model that learns them."""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.rollout.continuation import Prefix
from agentrl.rollout.plan import GroupPlan
from agentrl.trainers import compute_advantages, lay_out_paths
from agentrl.trainers.recipes import RECIPES
from agentrl.trainers.recipes.grpo import grpo
from agentrl.trainers.recipes.reinforce import reinforce
from agentrl.trainers.reward_models.step_model import StepModel, _passages
from agentrl.trainers.reward_models.step_values import BranchValues, MonteCarloValues
from agentrl.trainers.reward_models.steps import (
    branch_values,
    potential_rewards,
    return_of,
    success_of,
    with_step_rewards,
)
from agentrl.trajectory import Leaf, StopReason, Tree

NUMBERS = st.floats(-10, 10, width=32)


def leaf(segment: int, reward: float, *, valid: bool = True, **fields: Any) -> Leaf:
    reason = StopReason.ANSWERED if valid else StopReason.INVALID
    return Leaf(segment, reason, reward, reward >= 1.0, **fields)


def hand_made() -> Tree:
    """Three valid trajectories and an invalid one; A and B share a call. The last token of D's answer is forced.

    prompt 0 -- 1 call -- 2 result -- 3 answer                A  reward 1
                                   -- 4 answer                B  reward 0
             -- 5 call -- 6 result -- 7 call -- 8 result -- 9 answer   D  reward .5
                                   -- 10 answer               invalid
    """
    tree = Tree("t", metadata={"task": 4})
    tree.add(None, "prompt", 0, [1, 2, 3])
    tree.add(0, "assistant", 0, [11, 12])
    tree.add(1, "environment", 0, [13])
    tree.add(2, "assistant", 1, [14])
    tree.add(2, "assistant", 1, [15, 16])
    tree.add(0, "assistant", 0, [21])
    tree.add(5, "environment", 0, [22])
    tree.add(6, "assistant", 1, [23])
    tree.add(7, "environment", 1, [24])
    tree.add(8, "assistant", 2, [25, 26], action_mask=[1, 0])
    tree.add(6, "assistant", 1, [27])
    tree.leaves = [leaf(3, 1.0), leaf(4, 0.0), leaf(9, 0.5), leaf(10, 9.0, valid=False)]
    return tree


def no_completion(prefixes: Sequence[Prefix], num_completions: int, *, seed: int) -> list[list[Leaf]]:
    raise AssertionError("nothing was to be completed")


class TestDifferences:
    @given(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=8))
    def test_they_add_up_to_the_return_whatever_the_values(self, before: float, values: list[float]) -> None:
        assert math.fsum(potential_rewards(0.0, values)) == pytest.approx(values[-1], abs=1e-9)
        assert math.fsum(potential_rewards(before, values)) == pytest.approx(values[-1] - before, abs=1e-9)

    def test_more_steps_are_not_more_reward(self) -> None:
        short, long = potential_rewards(0.5, [1.0]), potential_rewards(0.5, [0.9] * 50 + [1.0])
        assert math.fsum(long) == pytest.approx(math.fsum(short))
        assert sum([0.9] * 50) > 40  # raw step scores would have paid for each


class TestBranchValues:
    def test_by_hand(self) -> None:
        # Prompt: (1 + 0 + .5) / 3; the shared call: (1 + 0) / 2; below each other turn there is one leaf.
        values = branch_values(hand_made(), return_of)
        assert values == {0: 0.5, 1: 0.5, 3: 1.0, 4: 0.0, 5: 0.5, 7: 0.5, 9: 0.5}
        assert branch_values(hand_made(), success_of) == {0: 1 / 3, 1: 0.5, 3: 1.0, 4: 0.0, 5: 0.0, 7: 0.0, 9: 0.0}

    def test_labels_are_shares_of_solved_leaves_also_of_one(self) -> None:
        """D's return of .5 is no success."""
        (labels,) = BranchValues().labels([hand_made()], no_completion, seed=0)
        assert labels == {0: 1 / 3, 1: 0.5, 3: 1.0, 4: 0.0, 5: 0.0, 7: 0.0, 9: 0.0}

    def test_where_one_leaf_is_left_the_value_of_the_turn_before_stays(self) -> None:
        tree = hand_made()
        tree.leaves[2] = leaf(9, 2.0)
        # Prompt: 3 / 3. D leaves the others at the prompt, so its calls are worth what the prompt is.
        values = branch_values(tree, return_of, min_leaves=2)
        assert (values[0], values[1], values[5], values[7]) == (1.0, 0.5, 1.0, 1.0)

    def test_rewards_of_the_turns(self) -> None:
        tree = hand_made()
        tree.leaves[2] = leaf(9, 2.0)
        (scored,) = BranchValues().build(None, no_completion, seed=0).score([tree], seed=0)  # type: ignore[arg-type]
        # V(prompt) = 1. A: 1, .5, then its return 1. D: 1, 1, 1, then 2.
        assert [own.turn_rewards for own in scored.leaves] == [[-0.5, 0.5], [-0.5, -0.5], [0.0, 0.0, 1.0], []]
        assert [own.reward for own in scored.leaves] == [0.0, -1.0, 1.0, 9.0]
        assert [own.reward for own in tree.leaves] == [1.0, 0.0, 2.0, 9.0]  # untouched
        assert scored.segments is tree.segments

    def test_they_land_on_the_last_sampled_token_of_each_turn(self) -> None:
        tree = hand_made()
        tree.leaves[2] = leaf(9, 2.0)
        batch = lay_out_paths([with_step_rewards(tree, branch_values(tree, return_of, min_leaves=2))])
        # Sampled tokens: 11 12 | 14, then 11 12 | 15 16, then 21 | 23 | 25 (26 was forced).
        assert batch.turn_rewards.tolist() == [
            [0.0, -0.5, 0.5, 0.0],
            [0.0, -0.5, 0.0, -0.5],
            [0.0, 0.0, 1.0, 0.0],
        ]
        assert batch.turn_rewards.sum(dim=1).tolist() == batch.rewards.tolist()

    def test_groups_see_no_difference_in_the_total(self) -> None:
        trees = [hand_made(), hand_made()]
        trees[1].leaves = [leaf(3, 0.25), leaf(4, 0.75), leaf(9, 7.0)]
        plain = compute_advantages(grpo(), lay_out_paths(trees))
        rewards = BranchValues().build(None, no_completion, seed=0)  # type: ignore[arg-type]
        shaped = compute_advantages(grpo(), lay_out_paths(rewards.score(trees, seed=0)))
        torch.testing.assert_close(plain, shaped, atol=1e-6, rtol=0.0)

    @given(st.lists(NUMBERS, min_size=7, max_size=7))
    def test_over_a_group_they_add_up_to_nothing_whatever_the_values(self, values: list[float]) -> None:
        """Also if a model, or the best of several completions, is wrong about the prompt."""
        scored = with_step_rewards(hand_made(), dict(zip((0, 1, 3, 4, 5, 7, 9), values, strict=True)))
        assert math.fsum(reward for own in scored.valid_leaves for reward in own.turn_rewards) == pytest.approx(
            0.0, abs=1e-9
        )

    def test_a_recipe_says_what_its_values_take(self) -> None:
        assert RECIPES["prm"].needs == ("reference", "environment that forks", "reward model")
        assert RECIPES["prm_monte_carlo"].needs == (
            "reference",
            "environment that forks",
            "reward model",
            "completions",
        )
        labelled = StepModel(labels=MonteCarloValues())
        assert "completions" in replace(grpo(), reward=labelled).needs
        assert replace(grpo(), reward=StepModel()).needs == ("reference", "reward model")

    def test_a_plan_that_never_branches_is_refused(self) -> None:
        """All turns but the last would earn 0. Labels of a model are another matter: single leaves will do."""
        with pytest.raises(ConfigError, match=r"'prm' reads off branches .* \(BranchValues\), but its branch rule is"):
            replace(RECIPES["prm"], sampling=GroupPlan(size=8))
        assert replace(RECIPES["prm_model"], sampling=GroupPlan(size=8)).reward == StepModel(labels=BranchValues())  # type: ignore[attr-defined]

    def test_a_group_of_one_is_refused(self) -> None:
        """What its prompt is worth would be its own return, and every reward 0."""
        for source in (BranchValues(), MonteCarloValues(), StepModel()):
            with pytest.raises(ConfigError, match="at least 2"):
                replace(reinforce(), sampling=GroupPlan(size=1), reward=source)

    def test_over_a_group_they_add_up_to_nothing(self) -> None:
        """So process supervision only scales them: no turn is paid for being one."""
        (scored,) = BranchValues().build(None, no_completion, seed=0).score([hand_made()], seed=0)  # type: ignore[arg-type]
        batch = lay_out_paths([scored])
        assert batch.turn_rewards.sum().item() == pytest.approx(0.0, abs=1e-6)
        advantages = compute_advantages(RECIPES["prm"], batch)  # type: ignore[arg-type]
        # Rewards A 0, .5; B 0, -.5; D 0, 0, 0: mean 0, variance .5 / 6. Still to come: A .5, .5; B -.5, -.5; D 0.
        score = 0.5 / math.sqrt(0.5 / 6)
        expected = torch.tensor([[score] * 3 + [0.0], [-score] * 4, [0.0] * 4])
        torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0.0)

    def test_one_leaf_and_no_turn(self) -> None:
        tree = Tree("t")
        tree.add(None, "prompt", 0, [1])
        tree.leaves = [leaf(0, 1.0)]
        (scored,) = BranchValues().build(None, no_completion, seed=0).score([tree], seed=0)  # type: ignore[arg-type]
        assert (scored.leaves[0].reward, scored.leaves[0].turn_rewards) == (0.0, [0.0])


class Completions:
    """Gives each prefix the returns of a table, by the segment that it ends in; notes what it was asked."""

    def __init__(self, returns: dict[int, list[float]]) -> None:
        self.returns = returns
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, prefixes: Sequence[Prefix], num_completions: int, *, seed: int) -> list[list[Leaf]]:
        self.asked += [(prefix.segment, num_completions, seed) for prefix in prefixes]
        return [[leaf(0, reward) for reward in self.returns[prefix.segment]] for prefix in prefixes]


RETURNS = {2: [1.0, 1.0, 0.0, 0.0], 6: [0.0, 0.0, 0.0, 0.0], 8: [1.0, 0.0, 0.0, 0.0]}


class TestMonteCarlo:
    def test_soft_and_hard_labels(self) -> None:
        complete = Completions(RETURNS)
        (soft,) = MonteCarloValues(num_completions=4).labels([hand_made()], complete, seed=5)
        # Prompt: one of three solved. Turns 1, 5, 7 by their completions, last turns by what came of them.
        assert soft == {0: 1 / 3, 1: 0.5, 3: 1.0, 4: 0.0, 5: 0.0, 7: 0.25, 9: 0.0}
        (hard,) = MonteCarloValues(num_completions=4, hard=True).labels([hand_made()], complete, seed=5)
        assert hard == {0: 1.0, 1: 1.0, 3: 1.0, 4: 0.0, 5: 0.0, 7: 1.0, 9: 0.0}
        # The call that A and B share is completed once; invalid episodes and last turns not at all.
        assert complete.asked == [(2, 4, 5), (6, 4, 5), (8, 4, 5)] * 2

    def test_rewards(self) -> None:
        model = MonteCarloValues(num_completions=4).build(None, Completions(RETURNS), seed=0)  # type: ignore[arg-type]
        (scored,) = model.score([hand_made()], seed=0)
        # V(prompt) = .5. A: .5, 1. B: .5, 0. D: 0, .25, then its return .5.
        assert [own.turn_rewards for own in scored.leaves[:3]] == [[0.0, 0.5], [0.0, -0.5], [-0.5, 0.25, 0.25]]
        assert model.state_dict() == {}

    def test_completions_are_counted(self) -> None:
        complete = Completions({**RETURNS, 8: [1.0]})  # three of four failed
        model = MonteCarloValues(num_completions=4).build(None, complete, seed=0)  # type: ignore[arg-type]
        model.score([hand_made()], seed=0)
        assert model.fit([hand_made()], number=0, seed=0) == {"completions": 12.0, "completions_invalid": 3.0}
        assert model.fit([hand_made()], number=1, seed=0) == {}  # nothing was scored in between

    def test_what_cannot_be_completed_keeps_the_value_before(self) -> None:
        source = MonteCarloValues(num_completions=4)
        (values,) = source.potentials([hand_made()], Completions({**RETURNS, 8: []}), seed=0)
        assert (values[5], values[7]) == (0.0, 0.0)
        (values,) = source.potentials([hand_made()], Completions({**RETURNS, 2: []}), seed=0)
        assert values[1] == values[0] == 0.5

    def test_without_a_turn_to_go_on_after_nobody_is_asked(self) -> None:
        tree = Tree("t")
        tree.add(None, "prompt", 0, [1])
        tree.add(0, "assistant", 0, [2])
        tree.leaves = [leaf(1, 1.0)]
        assert MonteCarloValues().potentials([tree], no_completion, seed=0) == [{0: 1.0, 1: 1.0}]

    def test_misuse(self) -> None:
        with pytest.raises(ConfigError, match="num_completions must be at least 1, got 0"):
            MonteCarloValues(num_completions=0)


def episodes(rng: random.Random, number: int) -> list[Tree]:
    """Two turns; the first says 50 or 60, and only after 50 can the second, 70 or 80 at random, succeed with 70."""
    trees = []
    for _ in range(number):
        tree = Tree("t")
        tree.add(None, "prompt", 0, [1, rng.randrange(10, 20)])
        for _ in range(4):
            first, second = rng.choice((50, 60)), rng.choice((70, 80))
            call = tree.add(0, "assistant", 0, [first, rng.randrange(30, 40)])
            result = tree.add(call.id, "environment", 0, [3])
            answer = tree.add(result.id, "assistant", 1, [second])
            tree.leaves.append(leaf(answer.id, float(first == 50 and second == 70)))
        trees.append(tree)
    return trees


class TestStepModel:
    def test_it_learns_what_turns_are_worth(self) -> None:
        rng = random.Random(0)
        model = StepModel(warmup_steps=80, fit_steps=10).build(None, no_completion, seed=0)  # type: ignore[arg-type]
        errors = [model.fit(episodes(rng, 48), number=number, seed=number)["step_model/error"] for number in range(8)]
        assert errors[-1] < 0.75 * errors[0]
        trees = episodes(random.Random(1), 32)
        found: dict[int, list[float]] = {50: [], 60: []}
        for tree, values in zip(trees, model.values(trees), strict=True):
            for node in tree.segments:
                if node.origin == "assistant" and node.turn == 0:
                    found[node.token_ids[0]].append(values[node.id])
        # One half after 50, nothing after 60.
        assert sum(found[50]) / len(found[50]) == pytest.approx(0.5, abs=0.12)
        assert sum(found[60]) / len(found[60]) == pytest.approx(0.0, abs=0.12)

    def test_it_reads_all_that_was_said_up_to_the_end_of_a_turn(self) -> None:
        read = {node: (passage.prompt, passage.response) for node, passage in _passages(hand_made()).items()}
        opening = (1, 2, 3)
        assert read == {
            0: (opening, ()),
            1: (opening, (11, 12)),
            3: (opening, (11, 12, 13, 14)),
            4: (opening, (11, 12, 13, 15, 16)),
            5: (opening, (21,)),
            7: (opening, (21, 22, 23)),
            9: (opening, (21, 22, 23, 24, 25, 26)),
        }

    def test_until_it_has_learned_the_environment_judges(self) -> None:
        model = StepModel().build(None, no_completion, seed=0)  # type: ignore[arg-type]
        assert model.score([hand_made()], seed=0) == [hand_made()]
        assert model.fit([Tree("t")], number=0, seed=0) == {}
        assert model.score([hand_made()], seed=0) == [hand_made()]
        model.fit([hand_made()], number=0, seed=0)
        (scored,) = model.score([hand_made()], seed=0)
        (values,) = model.values([hand_made()])
        # The prompt is worth the mean return, .5; what the model says of it does not matter.
        assert values[0] != 0.5
        shared, (first, second) = values[1], (values[5], values[7])
        assert [own.turn_rewards for own in scored.valid_leaves] == [
            pytest.approx([shared - 0.5, 1.0 - shared]),
            pytest.approx([shared - 0.5, 0.0 - shared]),
            pytest.approx([first - 0.5, second - first, 0.5 - second]),
        ]
        assert [own.reward for own in scored.valid_leaves] == [0.5, -0.5, 0.0]

    def test_a_resumed_model_goes_on_as_the_whole_one(self) -> None:
        whole, resumed = (
            StepModel(warmup_steps=5, fit_steps=2).build(None, no_completion, seed=seed) for seed in (0, 1)
        )  # type: ignore[arg-type]
        whole.fit(episodes(random.Random(0), 4), number=0, seed=0)
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for model in (whole, resumed):
            model.fit(episodes(random.Random(1), 4), number=1, seed=1)
        trees = episodes(random.Random(2), 4)
        assert whole.values(trees) == resumed.values(trees)

    def test_labels_may_come_from_completions(self) -> None:
        complete = Completions({2: [1.0], 6: [0.0], 8: [0.0]})
        model = replace(StepModel(), labels=MonteCarloValues(num_completions=1)).build(None, complete, seed=0)  # type: ignore[arg-type]
        metrics = model.fit([hand_made()], number=0, seed=7)
        assert complete.asked == [(2, 1, 7), (6, 1, 7), (8, 1, 7)]
        assert metrics["step_model/examples"] == 7  # the prompt and six turns
        assert (metrics["completions"], metrics["completions_invalid"]) == (3.0, 0.0)

    def test_misuse(self) -> None:
        for changes in ({"learning_rate": 0.0}, {"warmup_steps": 0}, {"fit_steps": 0}):
            with pytest.raises(ConfigError, match="must be positive"):
                StepModel(**changes)  # type: ignore[arg-type]
