"""The parts of a run one by one: task order, dynamic sampling, metrics, alarms, plans, progress, fine-tuning."""

import io
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tree_cases import assert_same_gradients, gradients, plain_scores, random_tree, tiny_model

from agentrl.envs import TextSpace
from agentrl.errors import ConfigError
from agentrl.policies.core import Sampling
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.seeding import derive
from agentrl.trainers import RECIPES, fine_tune
from agentrl.trainers.alarms import Alarms
from agentrl.trainers.assembly import num_tasks, plan_of
from agentrl.trainers.forward import TokenScorer
from agentrl.trainers.progress import TrainingProgress, summary_line
from agentrl.trainers.rollouts import TaskOrder, TrainingRollouts, rollout_metrics
from agentrl.trainers.settings import GroupSettings, OptimizerSettings
from agentrl.trainers.supervised import share_opening
from agentrl.trajectory import Leaf, StopReason, Tree

# Task order -----------------------------------------------------------------------------------------------------------


@given(num_tasks=st.integers(1, 30), counts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 99))
def test_every_task_once_per_epoch_however_it_is_drawn(num_tasks: int, counts: list[int], seed: int) -> None:
    order = TaskOrder(num_tasks, seed)
    drawn = list(itertools.chain.from_iterable(order.draw(count) for count in counts))
    assert order.position == len(drawn) == sum(counts)
    assert drawn == TaskOrder(num_tasks, seed).draw(sum(counts))
    for start in range(0, len(drawn), num_tasks):
        epoch = drawn[start : start + num_tasks]
        assert len(set(epoch)) == len(epoch)
        if len(epoch) == num_tasks:
            assert set(epoch) == set(range(num_tasks))
    split = sum(counts) // 2
    assert TaskOrder(num_tasks, seed, split).draw(sum(counts) - split) == drawn[split:]  # resumed in the middle


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    first, second = (TaskOrder(20, seed=0, position=20 * epoch).draw(20) for epoch in (0, 1))
    assert first != second
    assert TaskOrder(20, seed=1).draw(20) != first
    assert first != list(range(20))
    assert all(type(task) is int for task in first)  # they go into JSON


class Plain(gymnasium.Env[str, str]):
    """An environment that has no set of tasks."""

    observation_space = action_space = TextSpace()


def test_an_environment_without_tasks_has_more_seeds_than_anybody_draws() -> None:
    number = num_tasks(Plain)
    assert number >= 10**6
    assert len(set(TaskOrder(number, 0).draw(1000))) == 1000  # and they can be shuffled


# Dynamic sampling -----------------------------------------------------------------------------------------------------


def group(task: int, rewards: Sequence[float], *, valid: bool = True) -> Tree:
    tree = Tree(f"task-{task}")
    tree.add(None, "prompt", 0, [1])
    for reward in rewards:
        turn = tree.add(0, "assistant", 0, [2])
        reason = StopReason.ANSWERED if valid else StopReason.INVALID
        tree.leaves.append(Leaf(turn.id, reason, reward, False, error=None if valid else "gone"))
    return tree


class Source:
    """Groups whose rewards are a function of the task; remembers what it was asked for."""

    def __init__(self, rewards: Any, *, valid: bool = True) -> None:
        self._rewards = rewards
        self._valid = valid
        self.asked: list[tuple[list[int], int]] = []

    def collect(self, tasks: Sequence[int], plan: GroupPlan, *, seed: int, sampling: Sampling) -> list[Tree]:
        self.asked.append((list(tasks), seed))
        return [group(task, self._rewards(task), valid=self._valid) for task in tasks]


def rollouts(recipe: str, source: Source, tasks_per_update: int = 4, num_tasks: int = 12) -> TrainingRollouts:
    return TrainingRollouts(
        source,  # type: ignore[arg-type]
        TaskOrder(num_tasks, seed=0),
        replace(RECIPES[recipe], sampling=GroupPlan(size=2)),
        tasks_per_update=tasks_per_update,
        sampling=Sampling(),
    )


def test_without_a_filter_one_batch_is_all() -> None:
    source = Source(lambda task: [1.0, 1.0])
    harvest = rollouts("grpo", source).sample(seed=7)
    assert harvest.kept == harvest.trees
    assert source.asked == [(TaskOrder(12, 0).draw(4), derive(7, "batch", 0))]


def test_groups_of_equal_rewards_are_replaced() -> None:
    """A third of the tasks has contrast: of 12 tasks, the first epoch, four groups; they fill the batch exactly."""
    source = Source(lambda task: [0.0, 1.0] if task % 3 == 0 else [0.5, 0.5])
    sampled = rollouts("dapo", source)
    harvest = sampled.sample(seed=7)
    assert [tree.task_id for tree in harvest.kept] == [
        f"task-{task}" for task in TaskOrder(12, 0).draw(12) if task % 3 == 0
    ]
    assert len(harvest.trees) == 12
    assert sampled.position == 12
    assert [seed for _, seed in source.asked] == [derive(7, "batch", attempt) for attempt in range(3)]
    assert len({seed for _, seed in source.asked}) == 3


def test_more_than_a_batch_is_not_trained_on() -> None:
    """Three of four groups pass at a time: of the six of two batches the first four are kept."""
    number = itertools.count()
    source = Source(lambda task: [0.0, 0.0] if next(number) % 4 == 0 else [0.0, 1e-6])
    harvest = rollouts("dapo", source).sample(seed=0)
    assert len(harvest.trees) == 8
    assert harvest.kept == [*harvest.trees[1:4], harvest.trees[5]]


def test_the_number_of_batches_is_bounded() -> None:
    """DAPO's paper waits without end; here the update goes on with what there is, here with nothing."""
    bound = RECIPES["dapo"].group_filter.max_rounds  # type: ignore[union-attr]
    source = Source(lambda task: [1.0, 1.0])
    harvest = rollouts("dapo", source).sample(seed=0)
    assert (len(source.asked), len(harvest.trees), harvest.kept) == (bound, 4 * bound, [])


def test_invalid_trajectories_do_not_make_a_contrast() -> None:
    def with_invalid(task: int) -> list[float]:
        return [1.0, 1.0]

    source = Source(with_invalid)
    original = source.collect

    def collect(*arguments: Any, **options: Any) -> list[Tree]:
        trees = original(*arguments, **options)
        for tree in trees:
            tree.leaves.append(Leaf(1, StopReason.INVALID, 0.0, False))
        return trees

    source.collect = collect  # type: ignore[method-assign]
    assert rollouts("dapo", source).sample(seed=0).kept == []
    assert len(rollouts("grpo", source).sample(seed=0).kept) == 4


def test_a_group_without_a_valid_trajectory_is_not_trained_on() -> None:
    source = Source(lambda task: [0.0, 1.0])
    sampled = rollouts("grpo", source)
    first = TaskOrder(12, seed=0).draw(1)[0]
    source.collect = lambda tasks, plan, **_: [group(task, [0.0, 1.0], valid=task != first) for task in tasks]  # type: ignore[method-assign]
    harvest = sampled.sample(seed=0)
    assert (len(harvest.trees), harvest.kept) == (4, harvest.trees[1:])


def test_no_valid_episode_at_all_ends_the_run() -> None:
    with pytest.raises(ConfigError, match=r"No episode of this update is valid\. Most frequent cause: gone"):
        rollouts("grpo", Source(lambda task: [0.0], valid=False)).sample(seed=0)


# Metrics --------------------------------------------------------------------------------------------------------------


def metrics_trees() -> list[Tree]:
    """One group with a branch and an invalid trajectory, one of equal rewards, and one that is invalid throughout."""
    first = Tree("a", metadata={"failed_forks": 2})
    first.add(None, "prompt", 0, [1, 1, 1])
    first.add(0, "assistant", 0, [2, 2], entropies=[1.0, 0.5])
    first.add(1, "environment", 0, [3])
    first.add(2, "assistant", 1, [4, 4, 4], action_mask=[1, 1, 0], entropies=[0.5, 1.0, 0.0])
    first.add(2, "assistant", 1, [5], entropies=[2.0])
    first.leaves = [
        Leaf(3, StopReason.ANSWERED, 1.0, True, num_turns=2, tool_calls={"add": 2, "search": 1}),
        Leaf(
            4, StopReason.MAX_TOKENS, 0.0, False, num_turns=2, tool_calls={"add": 1}, tool_errors={"add": 1}, fork_of=2
        ),
        Leaf(1, StopReason.INVALID, 0.0, False, num_turns=1, tool_calls={"add": 9}),
    ]
    second = group(1, [0.5, 0.5])
    for leaf in second.leaves:
        leaf.num_turns = 1
    return [first, second, group(2, [0.0], valid=False)]


def test_metrics_by_hand() -> None:
    metrics = rollout_metrics(metrics_trees())
    assert metrics == pytest.approx(
        {
            "success": 1 / 4,  # valid: two and two
            "reward": (1 + 0 + 0.5 + 0.5) / 4,
            "reward_std": (0.5 + 0.0) / 2,  # of [1, 0] and of [0.5, 0.5]
            "frac_reward_zero_std": 1 / 2,
            "entropy": (1 + 0.5 + 0.5 + 1 + 2) / 8,  # 5 sampled tokens, two of the second group and one of the third
            "turns": (2 + 2 + 1 + 1) / 4,
            "tool_calls": (3 + 1) / 4,
            "tool_errors": 1 / 4,
            "truncated": 1 / 4,
            "branches": 1 / 3,
            "failed_forks": 2.0,
            "episodes": 4.0,
            "invalid_episodes": 2.0,
            "sampled_tokens": 8.0,
            "unique_tokens": (3 + 2 + 1 + 3 + 1) + 3 + 2,
            "path_tokens": (9 + 7 + 5) + 4 + 2,
        },
        abs=1e-12,
    )


def test_metrics_without_a_valid_episode() -> None:
    metrics = rollout_metrics([group(0, [1.0], valid=False)])
    assert (metrics["success"], metrics["reward_std"], metrics["frac_reward_zero_std"]) == (0.0, 0.0, 0.0)
    assert (metrics["episodes"], metrics["invalid_episodes"]) == (0.0, 1.0)


# Alarms ---------------------------------------------------------------------------------------------------------------

HEALTHY = {
    "frac_reward_zero_std": 0.5,
    "entropy": 1.0,
    "tool_calls": 1.0,
    "success": 0.5,
    "invalid_episodes": 0.0,
    "episodes": 10.0,
    "failed_forks": 0.0,
    "branches": 1.0,
}
TROUBLES = {
    "same reward": {"frac_reward_zero_std": 1.0},
    "Entropy has fallen": {"entropy": 0.049},
    "stopped calling tools": {"tool_calls": 0.0},
    "episodes are invalid": {"invalid_episodes": 2.0},
    "could be branched": {"failed_forks": 1.0, "branches": 0.0},
}


def said(updates: list[dict[str, float]], alarms: Alarms | None = None) -> list[tuple[int, str]]:
    """Update and which trouble, for every warning."""
    alarms = alarms or Alarms()
    warnings = [(number, text) for number, update in enumerate(updates, 1) for text in alarms.check(update)]
    return [(number, next(name for name in TROUBLES if name in text)) for number, text in warnings]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_an_alarm_speaks_once_after_five_updates_in_a_row(trouble: str) -> None:
    bad = {**HEALTHY, **TROUBLES[trouble]}
    assert said([HEALTHY] + [bad] * 20) == [(6, trouble)]
    assert said([HEALTHY] + [bad] * 4 + [HEALTHY] + [bad] * 4) == []
    assert said([HEALTHY] + [bad] * 7 + [HEALTHY] + [bad] * 7) == [(6, trouble), (14, trouble)]


@pytest.mark.parametrize(
    "fine",
    [
        {"entropy": 0.051},
        {"tool_calls": 0.011},
        {"invalid_episodes": 1.0},  # 1 of 11 is less than a tenth
        {"failed_forks": 3.0, "branches": 0.1},
        {"frac_reward_zero_std": 0.99},
        {"success": 0.99, "frac_reward_zero_std": 1.0, "entropy": 0.0},  # solved: no contrast and no doubt are left
    ],
    ids=str,
)
def test_what_is_no_trouble(fine: dict[str, float]) -> None:
    assert said([HEALTHY] + [{**HEALTHY, **fine}] * 10) == []


def test_who_never_used_tools_has_not_stopped() -> None:
    assert said([{**HEALTHY, "tool_calls": 0.0}] * 10) == []


def test_several_alarms_at_a_time() -> None:
    everything = {**HEALTHY, "frac_reward_zero_std": 1.0, "entropy": 0.0, "tool_calls": 0.0}
    assert Counter(name for _, name in said([HEALTHY] + [everything] * 9)) == {
        "same reward": 1,
        "Entropy has fallen": 1,
        "stopped calling tools": 1,
    }


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("grpo", {}, {"size": 8, "initial": None, "rule": BranchRule.NONE}),
        ("grpo", {"size": 3}, {"size": 3, "initial": None}),
        ("arpo", {}, {"size": 16, "initial": 8, "rule": BranchRule.PAPER, "alpha": 0.5, "beta": 0.2, "tau": 0.5}),
        ("arpo", {"size": 6}, {"size": 6, "initial": 3}),  # the recipe's half
        ("arpo", {"size": 3}, {"size": 3, "initial": 1}),
        ("arpo", {"size": 6, "initial": 5}, {"size": 6, "initial": 5}),
        ("arpo", {"initial": 12}, {"size": 16, "initial": 12}),
        ("arpo", {"rule": BranchRule.NONE}, {"size": 16, "initial": None}),
        ("arpo", {"rule": BranchRule.RANDOM, "alpha": 0.0}, {"rule": BranchRule.RANDOM, "alpha": 0.0, "initial": 8}),
        ("grpo", {"rule": BranchRule.PAPER, "initial": 2}, {"size": 8, "initial": 2, "rule": BranchRule.PAPER}),
        (
            "arpo",
            {"max_branches": 2, "probe_tokens": 7, "tau": 0.6},
            {"max_branches": 2, "probe_tokens": 7, "tau": 0.6},
        ),
    ],
    ids=str,
)
def test_overrides_of_a_plan(recipe: str, overrides: dict[str, Any], expected: dict[str, Any]) -> None:
    plan = plan_of(RECIPES[recipe], GroupSettings(**overrides))
    assert {name: getattr(plan, name) for name in expected} == expected


def test_a_branch_rule_without_room_for_branches_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs initial < size=8"):
        plan_of(RECIPES["grpo"], GroupSettings(rule=BranchRule.PAPER))


# Progress -------------------------------------------------------------------------------------------------------------


def shown(monkeypatch: pytest.MonkeyPatch, total: int, done: int, *, terminal: bool = False) -> str:
    """What is written where every update takes four seconds, on a machine that was just started."""
    clock = SimpleNamespace(now=0.5)
    monkeypatch.setattr("agentrl.trainers.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=200)
    with TrainingProgress(console, total, done) as display:
        display.say("warning: [bold]not markup[/bold], [/] :smile:")
        for number in range(done + 1, total + 1):
            clock.now += 4.0
            display.update(number, {**HEALTHY, "reward": 0.25, "tokens_per_s": 1234.5, "clip_fraction_low": 0.125})
    return file.getvalue()


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update, then what comes more than ten seconds after the last line, and the last one."""
    lines = shown(monkeypatch, total=18, done=10).splitlines()
    assert lines[0] == "warning: [bold]not markup[/bold], [/] :smile:"
    assert [line.split()[1] for line in lines[1:]] == ["11/18", "14/18", "17/18", "18/18"]
    assert "success 0.50  reward 0.25  entropy 1.000" in lines[1]
    assert "clipped 0.12  tools/episode 1.00  tokens/s 1234" in lines[1]
    # Four seconds an update: seven are left, then four, one and none.
    assert [line.split("left ")[1] for line in lines[1:]] == ["28 s", "16 s", "4 s", "0 s"]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, total=3, done=0, terminal=True)
    assert "3/3" in text
    assert "\x1b[" in text


def test_the_line_shows_the_kl_that_there_is() -> None:
    line = {**HEALTHY, "reward": 0.0, "tokens_per_s": 1.0}
    assert "kl 2.0e-03" in summary_line(1, 2, {**line, "kl_old": 2e-3})
    assert "kl 5.0e-02" in summary_line(1, 2, {**line, "kl_old": 2e-3, "kl_reference": 5e-2})
    for word in ("kl", "clipped"):  # recipes without a ratio, and updates that found nothing to learn from
        assert word not in summary_line(1, 2, line)
    assert "loss" not in summary_line(1, 2, {**line, "loss": 0.5})
    assert summary_line(1, 2, {"loss": 0.5, "demonstrations": 6.0}) == "update 1/2  loss 0.500  demonstrations 6"


# Supervised fine-tuning -----------------------------------------------------------------------------------------------


def demonstrations(seed: int, shared: int, count: int = 4) -> list[Tree]:
    """Trees of one leaf or of several whose prompts begin with the same `shared` tokens, and then differ."""
    rng = random.Random(seed)
    opening = [rng.randrange(61) for _ in range(shared)]
    trees = []
    for number in range(count):
        tree = random_tree(100 * seed + number, invalid=0.0)
        tree.segments[0].token_ids = [*opening, number, *tree.segments[0].token_ids]
        tree.segments[0].action_mask = [0] * len(tree.segments[0].token_ids)
        tree.segments[0].logprobs = tree.segments[0].entropies = [0.0] * len(tree.segments[0].token_ids)
        trees.append(tree)
    return trees


def paths_of(trees: Sequence[Tree]) -> list[tuple[list[int], list[int], float]]:
    """Tokens, masks and reward of every trajectory."""
    return [
        (
            tree.token_ids(leaf.segment),
            [m for segment in tree.path(leaf.segment) for m in segment.action_mask],
            leaf.reward,
        )
        for tree in trees
        for leaf in tree.leaves
    ]


@pytest.mark.parametrize("shared", [0, 1, 25])
@pytest.mark.parametrize("seed", range(3))
def test_a_shared_opening_changes_no_path(seed: int, shared: int) -> None:
    trees = demonstrations(seed, shared)
    before = paths_of(trees)
    joined = share_opening(trees)
    assert paths_of([joined]) == before == paths_of(trees)  # and the originals are as they were
    assert len(joined.segments[0].token_ids) == shared
    assert joined.num_tokens == sum(tree.num_tokens for tree in trees) - shared * (len(trees) - 1)
    assert [segment.id for segment in joined.segments] == list(range(len(joined.segments)))


@pytest.mark.parametrize("shared", [1, 25])
def test_a_shared_opening_changes_no_loss(shared: int) -> None:
    model, trees = tiny_model(), demonstrations(1, shared)
    scorer = TokenScorer(model)
    apart = torch.cat([scorer.score([tree]).logprobs for tree in trees])
    expected = gradients(model, -apart.mean())
    together = scorer.score([share_opening(trees)]).logprobs
    assert (together - apart).abs().max() <= 1e-5
    assert_same_gradients(gradients(model, -together.mean()), expected, relative=1e-5)


def test_equal_prompts_keep_a_token_each() -> None:
    trees = [group(0, [1.0]), group(1, [0.0])]
    for tree in trees:
        tree.segments[0] = Tree("x").add(None, "prompt", 0, [5, 6, 7])
    joined = share_opening(trees)
    assert [segment.token_ids for segment in joined.segments] == [[5, 6], [7], [2], [7], [2]]
    assert paths_of([joined]) == paths_of(trees)
    assert paths_of([share_opening(trees[:1])]) == paths_of(trees[:1])


def test_fine_tuning_lowers_the_loss() -> None:
    trees = demonstrations(2, shared=6)
    options = OptimizerSettings(learning_rate=5e-3)
    losses = list(fine_tune(tiny_model(), itertools.repeat(trees), options, steps=30))
    assert len(losses) == 30
    assert losses[0] > 0.8 * math.log(61)  # a random model knows nothing
    assert losses[-1] < losses[0] / 3


def test_fine_tuning_steps_equal_plain_ones() -> None:
    """Three AdamW steps at 1/2, 1 and 1 of the learning rate, with weight decay and a clipped gradient."""
    model, plain = (tiny_model("gpt2", torch.float64) for _ in range(2))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batches = [[random_tree(seed, max_depth=1)] for seed in range(3)]
    for (tree,) in batches:
        tree.leaves = tree.leaves[:1]
    options = OptimizerSettings(
        learning_rate=1e-3, warmup_updates=2, schedule="linear", weight_decay=0.1, max_grad_norm=0.5
    )
    losses = list(fine_tune(model, iter(batches), options, steps=3))
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.1)
    for batch, loss, rate in zip(batches, losses, (0.5e-3, 1e-3, 1e-3), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        expected = -plain_scores(plain, batch)[0].mean()
        expected.backward()  # type: ignore[no-untyped-call]
        assert loss == pytest.approx(float(expected.detach()), abs=1e-9)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-8


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_fine_tuning_starts_at_the_plain_loss(seed: int) -> None:
    """One leaf per tree, as demonstrations are: every sampled token counts once."""
    model = tiny_model()
    trees = [random_tree(seed + number, max_depth=1) for number in range(3)]
    for tree in trees:
        tree.leaves = tree.leaves[:1]
    kept = [segment for tree in trees for segment in tree.path(tree.leaves[0].segment)]
    assume(any(any(segment.action_mask) for segment in kept))  # in one draw of a thousand nothing was sampled
    with torch.no_grad():
        expected = -float(plain_scores(model, trees)[0].mean())
    (loss,) = fine_tune(model, iter([trees]), OptimizerSettings(learning_rate=1e-3), steps=1)
    assert loss == pytest.approx(expected, abs=1e-5)
