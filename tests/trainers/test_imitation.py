"""Fine-tuning on demonstrations and STaR's fit from the base model, against plain computations."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from tree_cases import gradients, plain_scores, random_tree, tiny_model

from agentrl.errors import ConfigError
from agentrl.rollout.plan import GroupPlan
from agentrl.trainers import RECIPES
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.imitation import ImitationLearner, SelfTaughtLearner, SelfTaughtRecipe, solutions
from agentrl.trainers.settings import OptimizerSettings
from agentrl.trajectory import Leaf, StopReason, Tree

RATE = 1e-3
STAR = SelfTaughtRecipe(
    name="star", paper="", idea="", sampling=GroupPlan(size=1), steps=3, growth=2.0, max_steps=100, batch=2
)


def settings(**changes: Any) -> OptimizerSettings:
    return OptimizerSettings(**{"learning_rate": RATE, "max_grad_norm": 1e9, **changes})


def group(number: int, outcomes: list[bool]) -> Tree:
    """Trajectories with a call, a result that is read and not learned, and an answer; none shares a sampled token."""
    tree = Tree(f"task-{number}")
    tree.add(None, "prompt", 0, [number, 1, 2])
    for i, success in enumerate(outcomes):
        call = tree.add(0, "assistant", 0, [10 + number, 20 + i])
        result = tree.add(call.id, "environment", 0, [30 + number] * (1 + i))
        answer = tree.add(result.id, "assistant", 1, [40 + i] * (1 + number % 3))
        tree.leaves.append(Leaf(answer.id, StopReason.ANSWERED, float(success), success))
    return tree


def good_only(trees: list[Tree]) -> list[Tree]:
    return [replace(tree, leaves=[leaf for leaf in tree.leaves if leaf.success]) for tree in trees]


def plain_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, trees: list[Tree]) -> float:
    """-mean log p over all sampled tokens of the trajectories, one trajectory at a time."""
    optimizer.zero_grad()
    loss = -plain_scores(model, trees)[0].mean()
    gradients(model, loss)
    optimizer.step()
    return float(loss.detach())


def plain_optimizer(model: PreTrainedModel, rate: float = RATE) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)


def assert_same_weights(model: PreTrainedModel, other: PreTrainedModel, start: PreTrainedModel) -> None:
    """Apart by no more than a thousandth of the way from the start."""
    named = zip(model.parameters(), other.parameters(), start.parameters(), strict=True)
    with torch.no_grad():
        apart, way = zip(*((float((a - b).norm()), float((b - c).norm())) for a, b, c in named), strict=True)
    assert sum(way) > 0.01
    assert sum(apart) <= 1e-3 * sum(way)


def equal(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


# Which trajectories --------------------------------------------------------------------------------------------------


def test_solutions_are_valid_successes_with_a_sampled_token() -> None:
    tree = group(1, [True, False, True, True])
    tree.leaves[2] = replace(tree.leaves[2], stop_reason=StopReason.INVALID)
    for segment in tree.path(tree.leaves[3].segment):
        segment.action_mask = [0] * len(segment.token_ids)
    found = solutions(tree)
    assert found is not None
    assert found.leaves == tree.leaves[:1]
    assert solutions(group(1, [False, False])) is None
    assert solutions(group(1, [])) is None


# SFT -----------------------------------------------------------------------------------------------------------------


def test_steps_of_sft_equal_the_plain_computation() -> None:
    """Two updates on the successes among the trajectories, without a token of a prompt, a result or a failure."""
    trees = [group(0, [True, False]), group(1, [False]), group(2, [True, True])]
    model, plain = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64)
    learner = ImitationLearner(settings(), TokenScorer(model), total_updates=10)
    optimizer = plain_optimizer(plain)
    for number in range(2):
        metrics = learner.update(trees, number=number, seed=number)
        assert metrics["loss"] == pytest.approx(plain_step(plain, optimizer, good_only([trees[0], trees[2]])), rel=1e-9)
        assert (metrics["demonstrations"], metrics["num_tokens"]) == (3.0, 3.0 + 2 * 5.0)
    assert_same_weights(model, plain, tiny_model(dtype=torch.float64))


def test_what_was_no_success_changes_nothing() -> None:
    with_failures, without = tiny_model(), tiny_model()
    trees = [group(0, [True, False]), group(1, [False])]
    for model, given in ((with_failures, trees), (without, good_only(trees))):
        ImitationLearner(settings(), TokenScorer(model), total_updates=10).update(given, number=0, seed=0)
    assert equal(with_failures, without)
    assert not equal(without, tiny_model())


def test_micro_batches_do_not_change_a_step_of_sft() -> None:
    trees = [random_tree(seed) for seed in range(6)]
    for tree in trees:
        tree.leaves = [replace(leaf, success=True) for leaf in tree.leaves]
    losses = []
    for tokens in (10**6, 40, 1):
        model = tiny_model(dtype=torch.float64)
        learner = ImitationLearner(settings(max_tokens_per_micro_batch=tokens), TokenScorer(model), total_updates=1)
        metrics = learner.update(trees, number=0, seed=0)
        losses.append((metrics["loss"], metrics["grad_norm"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[2] == pytest.approx(losses[0], rel=1e-9)


def test_sft_has_a_schedule_and_mini_batches() -> None:
    model = tiny_model()
    learner = ImitationLearner(settings(schedule="linear", mini_batches=2), TokenScorer(model), total_updates=4)
    assert learner.update([group(0, [True]), group(1, [True])], number=3, seed=0)["learning_rate"] == RATE / 4
    assert {int(step["step"]) for step in learner.state_dict()["optimizer"]["adamw"]["state"].values()} == {2}
    before = copy.deepcopy(model)
    metrics = learner.update([group(0, [False])], number=2, seed=0)
    assert metrics == {"demonstrations": 0.0, "learning_rate": RATE / 2}
    assert equal(model, before)


def test_a_saved_sft_goes_on_as_if_it_had_not_stopped() -> None:
    trees = [group(0, [True]), group(1, [True])]
    whole, stopped = tiny_model(), tiny_model()
    learners = [ImitationLearner(settings(), TokenScorer(model), total_updates=3) for model in (whole, stopped)]
    for number in range(3):
        if number == 2:
            state = copy.deepcopy(learners[1].state_dict())
            learners[1] = ImitationLearner(settings(), TokenScorer(stopped), total_updates=3)
            learners[1].load_state_dict(state)
        for learner in learners:
            learner.update(trees, number=number, seed=number)
    assert equal(whole, stopped)


# STaR ----------------------------------------------------------------------------------------------------------------


def self_taught(model: PreTrainedModel, recipe: SelfTaughtRecipe = STAR, **changes: Any) -> SelfTaughtLearner:
    base = [parameter.detach() for parameter in tiny_model(dtype=model.dtype).parameters()]
    return SelfTaughtLearner(recipe, settings(**changes), TokenScorer(model), base=base)


def test_every_fit_begins_with_the_base_model_and_a_new_optimizer() -> None:
    """The weights after an update are those of a learner that never saw the updates before, to the bit."""
    first, second = [group(0, [True]), group(1, [True, False])], [group(2, [True, True]), group(3, [False])]
    model, fresh = tiny_model(), tiny_model()
    learner = self_taught(model)
    assert learner.update(first, number=0, seed=0)["fit_steps"] == 3.0
    after_first = copy.deepcopy(model)
    assert learner.update(second, number=1, seed=1)["fit_steps"] == 6.0  # growth 2
    self_taught(fresh).update(second, number=1, seed=1)
    assert equal(model, fresh)
    continued = self_taught(after_first)  # negative control: without the way back it would be another model
    continued._restore = lambda: None  # type: ignore[method-assign]
    continued.update(second, number=1, seed=1)
    assert not equal(model, after_first)


def test_a_fit_equals_the_plain_computation() -> None:
    """Batches of 2 of 3 trajectories: sizes 2, 1, 2; linear schedule over the 3 steps of the fit."""
    trees = [group(0, [True]), group(1, [False]), group(2, [True, True])]
    single = [replace(tree, leaves=[leaf]) for tree in good_only(trees) for leaf in tree.leaves]
    model, plain = tiny_model(dtype=torch.float64), tiny_model(dtype=torch.float64)
    learner = self_taught(model, schedule="linear")
    batches = learner._batches(3, 5)
    drawn = [next(batches) for _ in range(3)]
    assert sorted(drawn[0] + drawn[1]) == [0, 1, 2]
    assert len(drawn[2]) == 2
    metrics = learner.update(trees, number=0, seed=5)
    optimizer, losses = plain_optimizer(plain), []
    for step, chosen in enumerate(drawn):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / 3)
        losses.append(plain_step(plain, optimizer, [single[i] for i in chosen]))
    assert metrics["loss"] == pytest.approx(sum(losses) / 3, rel=1e-9)
    assert metrics["learning_rate"] == pytest.approx(RATE / 3)
    assert_same_weights(model, plain, tiny_model(dtype=torch.float64))


def test_without_a_solution_there_is_no_fit() -> None:
    """The policy stays as it is, and does not fall back to the base model."""
    model = tiny_model()
    learner = self_taught(model)
    learner.update([group(0, [True])], number=0, seed=0)
    before = copy.deepcopy(model)
    assert learner.update([group(0, [False])], number=1, seed=1) == {"fit_steps": 0.0}
    assert equal(model, before)
    assert not equal(model, tiny_model())
    assert learner.state_dict() == {}  # nothing outlives a fit


def test_fits_grow_to_a_bound() -> None:
    """3, 6, 12 ... and never more than 10; the paper's 40 and a fifth more: 40 * 1.2^2 = 57.6."""
    assert [replace(STAR, max_steps=10).steps_of(number) for number in range(4)] == [3, 6, 10, 10]
    star = RECIPES["star"]
    assert isinstance(star, SelfTaughtRecipe)
    assert [star.steps_of(number) for number in (0, 1, 2, 17, 18, 10_000)] == [40, 48, 58, 887, 1000, 1000]
    assert (star.needs, replace(star, hint=None).needs) == (("answers", "extra samples"), ())
    assert RECIPES["sft"].needs == ("demonstrations",)
    assert (star.hint, star.max_per_task, star.batch, star.sampling.size) == ("Hint: the answer is {answer}.", 4, 8, 1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hint": "Think harder."}, r"a place \{answer\} for the task's answer, got 'Think harder\.'"),
        ({"max_per_task": 0}, "max_per_task must be at least 1 and finite, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"growth": 0.9}, r"growth must be at least 1 and finite, got 0\.9"),
        ({"growth": float("inf")}, "growth must be at least 1 and finite"),
        ({"max_steps": 2}, "max_steps must be at least steps=3, got 2"),
    ],
)
def test_numbers_of_star_out_of_range(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        replace(STAR, **changes)
