"""AEPO's rollout: what a finished tree says about it must follow from the rule, replayed on the tree itself."""

import dataclasses
import math
import random
from collections import defaultdict
from typing import Any

import pytest
from rollout_scripts import SlowCounting, WatchedPolicy, call, random_script

from agentrl.chat.template import ChatFormat
from agentrl.policies.core import Request
from agentrl.policies.scripted import Reply
from agentrl.rollout.branching import num_global
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.trajectory import Leaf, Segment, Tree

BY_PLAN = {
    "fixed": GroupPlan(size=8, initial=3, rule=BranchRule.AEPO, branch_penalty=0.1),
    "dynamic": GroupPlan(size=8, rule=BranchRule.AEPO, dynamic=True, branch_penalty=0.1),
    "dynamic threshold": GroupPlan(size=8, rule=BranchRule.PAPER, dynamic=True),
    "dynamic ranking": GroupPlan(size=8, rule=BranchRule.TOP_ENTROPY, dynamic=True),
}


def script(request: Request, text: str) -> Reply:
    """Up to four calls, entropies that differ by enough for the penalty to decide, and an answer of its own."""
    reply = random_script(request, text)
    answers = text.count("<|im_start|>assistant") > 1 and "tool_call" not in reply.text
    return dataclasses.replace(reply, text=f"{reply.text} {request.seed}") if answers else reply


def turns(tree: Tree, leaf: Leaf) -> list[Segment]:
    return [segment for segment in tree.path(leaf.segment) if segment.origin == "assistant"]


def opening(segment: Segment, vocab_size: int) -> float:
    first = segment.entropies[:20]
    return sum(first) / len(first) / math.log(vocab_size)


def owners(tree: Tree) -> dict[int, list[int]]:
    """For every leaf (by number) the turns at which branches of its own were made.

    With one branch per moment, the trajectory that owns a moment is the first leaf in order whose path has it.
    """
    forks: dict[int, list[int]] = defaultdict(list)
    for number, leaf in enumerate(tree.leaves):
        if leaf.fork_of is not None:
            through = [
                i for i, other in enumerate(tree.leaves) if leaf.fork_of in {s.id for s in tree.path(other.segment)}
            ]
            assert through[0] < number
            forks[through[0]].append(tree.segments[leaf.fork_of].turn + 1)
    return forks


def replayed(tree: Tree, plan: GroupPlan, vocab_size: int, initial: int) -> dict[int, list[int]]:
    """The turns at which AEPO branches each leaf: in the order of turns, then of leaves, until the budget is spent."""
    budget = plan.size - initial
    forks: dict[int, list[int]] = defaultdict(list)
    moments = []
    for number, leaf in enumerate(tree.leaves):
        path = turns(tree, leaf)
        first = 1 if leaf.fork_of is None else tree.segments[leaf.fork_of].turn + 2
        streak = 0
        for turn in range(1, len(path)):
            change = opening(path[turn], vocab_size) - opening(path[0], vocab_size)
            if turn == first - 1:  # the branching that it comes from, which its parent's tokens decided
                streak += 1
                continue
            score = (plan.alpha + plan.beta * change) * max(0.0, 1 - plan.branch_penalty * streak)
            streak = streak + 1 if score > plan.tau else 0
            if turn >= first and leaf.root < initial and score > plan.tau:
                moments.append((turn, number))
    for turn, number in sorted(moments):
        if budget:
            forks[number].append(turn)
            budget -= 1
    return forks


@pytest.mark.parametrize("name", ["fixed", "dynamic"])
def test_a_tree_branches_where_the_rule_says(make_collector: Any, byte_tokenizer: Any, name: str) -> None:
    plan, vocab_size = BY_PLAN[name], len(byte_tokenizer)
    seen: list[int] = []
    chains = 0
    for tree in make_collector(script).collect(range(25), plan, seed=4):
        initial = plan.initial or global_samples(tree, plan, vocab_size)
        forks = owners(tree)
        assert forks == replayed(tree, plan, vocab_size, initial)
        assert len(tree.leaves) == plan.size
        num_roots = plan.size - sum(map(len, forks.values()))
        assert {leaf.root for leaf in tree.leaves} == set(range(num_roots))
        seen.append(initial)
        chains += any(turn + 1 in places for places in forks.values() for turn in places)
    assert chains > 0, "nowhere were two moments in a row branched at"
    assert name == "fixed" or len(set(seen)) > 1


def global_samples(tree: Tree, plan: GroupPlan, vocab_size: int) -> int:
    """From the entropies of the first trajectory, which is the probe."""
    root, *later = [opening(segment, vocab_size) for segment in turns(tree, tree.leaves[0])]
    return num_global(root, sum(later) / len(later), plan)


@pytest.mark.parametrize(
    ("values", "initial"),
    [
        ([1.0, 1.0, 1.0], 9),  # int(16 / 2) + 1
        ([1.0], 9),  # no tool result to compare with
        ([2.0, 0.0, 0.0], 16),  # 10 (2 - 0) / ln V is about 3.5: int(16 * 0.97) + 1
        ([0.0, 3.0, 3.0], 1),  # -5.3: int(16 * 0.005) + 1
        ([1.0, 0.0, 2.0], 9),  # the mean over tool results is 1
    ],
)
def test_the_probe_runs_alone_and_divides_the_group(
    make_collector: Any, byte_tokenizer: Any, chat: ChatFormat, values: list[float], initial: int
) -> None:
    """First the probe, then the others that start at the prompt, then at once all that no branch has claimed."""

    def play(request: Request, text: str) -> Reply:
        turn = text.count("<|im_start|>assistant") - 1
        return Reply(call(1) if turn + 1 < len(values) else "done", entropy=values[turn])

    policy = WatchedPolicy(byte_tokenizer, play, end_of_turn_id=chat.end_of_turn_id)
    never = GroupPlan(size=16, rule=BranchRule.AEPO, alpha=0.0, dynamic=True)
    make_collector(policy=policy).collect([0], never, seed=0)
    assert policy.launches == [count for count in (1, initial - 1, 16 - initial) if count]
    always = GroupPlan(size=16, rule=BranchRule.TOP_ENTROPY, dynamic=True)
    tree = make_collector(play).collect([0], always, seed=0)[0]
    assert any(leaf.fork_of is not None for leaf in tree.leaves) == (initial < 16 and len(values) > 1)


@pytest.mark.parametrize("plan", BY_PLAN.values(), ids=BY_PLAN)
def test_the_same_tree_whatever_the_completion_order(make_collector: Any, plan: GroupPlan) -> None:
    def shuffled(request: Request, text: str) -> Reply:
        return dataclasses.replace(script(request, text), delay=order.randint(0, 6))

    order = random.Random(0)
    expected = [tree.to_json() for tree in make_collector(script).collect([1, 2, 3], plan, seed=5)]
    for attempt in range(3):
        order = random.Random(attempt)
        threaded = make_collector(shuffled, SlowCounting, max_concurrent_episodes=8 * (1 + attempt))
        assert [tree.to_json() for tree in threaded.collect([1, 2, 3], plan, seed=5)] == expected
    assert [tree.to_json() for tree in make_collector(script).collect([1, 2, 3], plan, seed=6)] != expected


def test_a_probe_whose_surroundings_fail_still_starts_the_group(make_collector: Any) -> None:
    broken: list[int] = []

    def play(request: Request, text: str) -> Reply:
        if not broken:
            broken.append(request.sequence)
            return Reply(call(666))
        return Reply("total 1") if "tool_response" in text else Reply(call(1))

    plan = GroupPlan(size=6, rule=BranchRule.AEPO, dynamic=True)
    tree = make_collector(play).collect([0], plan, seed=0)[0]
    assert [leaf.valid for leaf in tree.leaves] == [False] + [True] * 5
