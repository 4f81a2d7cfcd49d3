"""Rollouts with a scripted policy: what is recorded, in which order, and that nobody waits for a slow tool."""

import dataclasses
import random
import re
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from rollout_scripts import Counter, Counting, SlowCounting, ThreadedCounter, WatchedPolicy, call, random_script

from agentrl.chat.template import ChatFormat
from agentrl.errors import ConfigError, ForkError
from agentrl.policies.core import Completion, Request, Sampling
from agentrl.policies.scripted import Reply, ScriptedPolicy
from agentrl.policies.transformers_engine import TransformersPolicy
from agentrl.rollout.collector import Collector
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.tasks import Task
from agentrl.trajectory import StopReason, Tree

RULES = [rule for rule in BranchRule if rule is not BranchRule.NONE]


def branching(rule: BranchRule, size: int = 8, initial: int = 4, **changes: Any) -> GroupPlan:
    return GroupPlan(size=size, initial=initial, rule=rule, **changes)


def two_turns(request: Request, text: str) -> Reply:

    return Reply("total 3") if "tool_response" in text else Reply(call(3))


def spell(tree: Tree, tokenizer: Any) -> list[tuple[str, str, int]]:
    """(text, mask character of the segment, turn) along the first path."""
    path = tree.path(tree.leaves[0].segment)
    return [
        (
            tokenizer.decode(s.token_ids, skip_special_tokens=False),
            "".join(map(str, sorted(set(s.action_mask)))),
            s.turn,
        )
        for s in path
    ]


def test_a_trajectory_token_by_token(make_collector: Any, byte_tokenizer: Any) -> None:
    tree = make_collector(two_turns).collect([7], GroupPlan(size=1), seed=0)[0]
    prompt, *rest = spell(tree, byte_tokenizer)
    assert prompt[0].endswith("<|im_start|>user\nCount to 7.<|im_end|>\n<|im_start|>assistant\n")
    assert '"name": "add"' in prompt[0]
    assert rest == [
        # The turn stops at the call, so its end of turn was not sampled and is glue.
        ('<tool_call>\n{"name": "add", "arguments": {"amount": 3}}\n</tool_call>', "1", 0),
        (
            "<|im_end|>\n<|im_start|>user\n<tool_response>\ntotal 3\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n",
            "0",
            0,
        ),
        ("total 3<|im_end|>", "1", 1),
    ]
    (leaf,) = tree.leaves
    assert (leaf.reward, leaf.success, leaf.stop_reason) == (1.0, True, StopReason.ANSWERED)
    assert (leaf.num_turns, leaf.tool_calls, leaf.tool_errors, leaf.answer) == (2, {"add": 1}, {}, "total 3")
    assert tree.task_id == "train-7"


def test_several_calls_in_a_turn_when_turns_end_at_the_end_of_turn(byte_tokenizer: Any) -> None:

    chat = ChatFormat(byte_tokenizer, stop_at_tool_call=False)

    def script(request: Request, text: str) -> Reply:
        return Reply("total 5") if "tool_response" in text else Reply(call(2) + "\n" + call(3))

    policy = ScriptedPolicy(byte_tokenizer, script, end_of_turn_id=chat.end_of_turn_id)
    collector = Collector(policy, chat, Counting, vocab_size=300)
    tree = collector.collect([0], GroupPlan(size=1), seed=0)[0]
    assert tree.leaves[0].tool_calls == {"add": 2}
    assert tree.leaves[0].success
    answer = spell(tree, byte_tokenizer)[2][0]
    # The end of turn was sampled here, so the glue does not repeat it.
    assert answer == (
        "\n<|im_start|>user\n<tool_response>\ntotal 2\n</tool_response>\n<tool_response>\ntotal 5\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_invariants_of_branching(make_collector: Any, rule: BranchRule, seed: int) -> None:
    plan = branching(rule)
    for tree in make_collector().collect([1, 2, 3], plan, seed=seed):
        assert len(tree.leaves) == 8
        branches = [leaf for leaf in tree.leaves if leaf.fork_of is not None]
        assert len(branches) <= plan.branch_budget
        assert {leaf.root for leaf in tree.leaves} == set(range(1 + max(leaf.root for leaf in tree.leaves)))
        assert all(tree.segments[leaf.fork_of].origin == "environment" for leaf in branches)
        for leaf in branches:
            assert leaf.fork_of in {segment.id for segment in tree.path(leaf.segment)}
        # A segment is stored once: no two siblings begin with the same stored tokens by reference of the same parent
        # twice being the prompt, and every path begins with the one prompt.
        assert sum(segment.origin == "prompt" for segment in tree.segments) == 1
        assert all(tree.path(leaf.segment)[0].id == 0 for leaf in tree.leaves)
        # Each trajectory's own tool counted only its own calls: the results on its path add up.
        for leaf in tree.leaves:
            assert leaf.num_turns == sum(s.origin == "assistant" for s in tree.path(leaf.segment))


@pytest.mark.parametrize("rule", RULES)
def test_a_branch_shares_its_parents_tool_state_and_goes_its_own_way(
    make_collector: Any, byte_tokenizer: Any, rule: BranchRule
) -> None:
    """Totals along every path must be running sums of the amounts on that very path."""
    found = 0
    for tree in make_collector().collect(range(10), branching(rule, alpha=1.0), seed=3):
        for leaf in tree.leaves:
            text = byte_tokenizer.decode(tree.token_ids(leaf.segment), skip_special_tokens=False)
            text = text.split("<|im_start|>assistant", 1)[1]
            amounts = [int(a) for a in re.findall(r'"amount": (\d+)', text)]
            totals = [int(a) for a in re.findall(r"<tool_response>\ntotal (\d+)", text)]
            assert totals == [sum(amounts[: i + 1]) for i in range(len(totals))]
            found += leaf.fork_of is not None
    assert found >= 10


@pytest.mark.parametrize("rule", [BranchRule.NONE, *RULES])
def test_what_the_policy_was_asked_to_continue_is_what_the_tree_holds(make_collector: Any, rule: BranchRule) -> None:
    """Before every turn, on every path, exactly the tokens from the prompt to it; with their masks and log-probs."""
    asked: list[tuple[int, ...]] = []

    def script(request: Request, text: str) -> Reply:
        asked.append(tuple(request.token_ids))
        return random_script(request, text)

    plan = GroupPlan(size=8) if rule is BranchRule.NONE else branching(rule)
    held: list[tuple[int, ...]] = []
    for tree in make_collector(script).collect([1, 2, 3], plan, seed=4):
        for segment in tree.segments:
            if segment.origin == "assistant":
                held.append(tuple(tree.token_ids(segment.id))[: -len(segment.token_ids)])
            sampled = segment.origin == "assistant"
            assert segment.action_mask == [int(sampled)] * len(segment.token_ids)
            assert segment.logprobs == [-float(sampled)] * len(segment.token_ids)  # as the scripted policy says
        for leaf in tree.leaves:
            if leaf.fork_of is not None:  # the tokens before the fork are another trajectory's, stored once
                fork = [segment.id for segment in tree.path(leaf.fork_of)]
                sharing = [[s.id for s in tree.path(other.segment)][: len(fork)] == fork for other in tree.leaves]
                assert sum(sharing) >= 2
    assert sorted(held) == sorted(asked)


@pytest.mark.parametrize("rule", [BranchRule.NONE, *RULES])
def test_the_same_tree_whatever_the_completion_order(
    make_collector: Any, byte_tokenizer: Any, rule: BranchRule
) -> None:
    """Tools that sleep at random in threads against inline tools, and another order inside the policy."""

    def shuffled(request: Request, text: str) -> Reply:
        reply = random_script(request, text)
        return dataclasses.replace(reply, delay=order.randint(0, 6))

    plan = GroupPlan(size=6) if rule is BranchRule.NONE else branching(rule, size=6, initial=3)
    order = random.Random(1)
    expected = [tree.to_json() for tree in make_collector().collect([1, 2, 3], plan, seed=5)]
    for attempt in range(3):
        order = random.Random(attempt)
        threaded = make_collector(shuffled, SlowCounting, max_concurrent_episodes=6 * (1 + attempt))
        assert [tree.to_json() for tree in threaded.collect([1, 2, 3], plan, seed=5)] == expected
    assert [tree.to_json() for tree in make_collector().collect([1, 2, 3], plan, seed=6)] != expected


def test_a_sleeping_tool_delays_nobody_else(make_collector: Any) -> None:
    """Eight episodes of four calls; the first call of one of them sleeps until the others have finished."""

    finished: list[str] = []
    others_finished, in_time = threading.Event(), []

    def script(request: Request, text: str) -> Reply:
        turn = text.count("<|im_start|>assistant")
        if turn == 5:
            finished.append(text.split("Count to ")[1].split(".")[0])
            if len(finished) == 7:
                others_finished.set()
            return Reply("done")
        return Reply(call(7 if "Count to 0." in text and turn == 1 else 1))

    class Sleepy(ThreadedCounter):
        def call(self, arguments: Mapping[str, Any]) -> str:
            if arguments["amount"] == 7:
                in_time.append(others_finished.wait(60))
            return super().call(arguments)

    class Sleeping(Counting):
        tools = (Sleepy(),)

    trees = make_collector(script, Sleeping).collect(range(8), GroupPlan(size=1), seed=0)
    assert len(trees) == len(finished) == 8
    assert (in_time, finished[-1]) == ([True], "0")


def test_lockstep_waits_for_every_tool(make_collector: Any) -> None:

    plan = branching(BranchRule.PAPER)
    expected = [tree.to_json() for tree in make_collector().collect([4], plan, seed=1)]
    trees = make_collector(env=SlowCounting, lockstep=True).collect([4], plan, seed=1)
    assert [tree.to_json() for tree in trees] == expected


def test_infrastructure_failure_makes_an_invalid_leaf_and_nothing_else(make_collector: Any) -> None:

    def script(request: Request, text: str) -> Reply:
        if "tool_response" in text:
            return Reply("total 1")
        return Reply(call(666 if request.seed % 2 else 1))

    tree = make_collector(script).collect([0], GroupPlan(size=12), seed=0)[0]
    assert len(tree.leaves) == 12
    broken = [leaf for leaf in tree.leaves if not leaf.valid]
    assert 0 < len(broken) < 12
    assert {leaf.error for leaf in broken} == {"InfrastructureError: the counter's server is gone"}
    assert all(leaf.success for leaf in tree.valid_leaves)


def test_top_up_trajectories_are_launched_together(make_collector: Any, byte_tokenizer: Any, chat: ChatFormat) -> None:
    """Entropies are equal, so nothing branches: three trajectories run to their end, then the five others at once."""
    policy = WatchedPolicy(byte_tokenizer, two_turns, end_of_turn_id=chat.end_of_turn_id)
    tree = make_collector(policy=policy).collect([0], branching(BranchRule.PAPER, size=8, initial=3), seed=0)[0]
    assert policy.launches == [3, 5]
    assert [(leaf.root, leaf.fork_of) for leaf in tree.leaves] == [(i, None) for i in range(8)]


def test_one_greedy_episode(make_collector: Any, tiny_llama: Any, byte_tokenizer: Any) -> None:
    """At temperature 0 the seed does not matter, and every token is the likeliest one."""
    policy = TransformersPolicy(tiny_llama, byte_tokenizer, [byte_tokenizer.eos_token_id])
    collector = make_collector(policy=policy, max_turn_tokens=24)
    runs = [
        collector.collect([0, 1], GroupPlan(size=1), seed=seed, sampling=Sampling(temperature=0.0)) for seed in (1, 2)
    ]
    assert [tree.to_json() for tree in runs[0]] == [tree.to_json() for tree in runs[1]]
    for tree in runs[0]:
        (leaf,) = tree.leaves
        assert (leaf.root, leaf.fork_of) == (0, None)
        ids = tree.token_ids(leaf.segment)
        sampled = tree.segments[1].token_ids
        start = len(tree.segments[0].token_ids)
        with torch.no_grad():
            logits = tiny_llama(torch.tensor([ids])).logits[0]
        assert logits[start - 1 : start - 1 + len(sampled)].argmax(-1).tolist() == sampled


def test_an_error_in_user_code_is_not_swallowed(make_collector: Any) -> None:

    class Broken(Counting):
        def reward(self, task: Any, episode: Any) -> float:
            raise KeyError("a bug in the reward function")

    with pytest.raises(KeyError, match="bug in the reward"):
        make_collector(two_turns, Broken).collect([0], GroupPlan(size=4), seed=0)


def test_limits_end_episodes_and_the_environment_judges_them(make_collector: Any) -> None:

    def talkative(request: Request, text: str) -> Reply:
        return Reply("x" * 1000)

    leaf = make_collector(talkative, max_turn_tokens=50).collect([0], GroupPlan(size=1), seed=0)[0].leaves[0]
    assert (leaf.stop_reason, leaf.num_turns, leaf.answer, leaf.reward) == (StopReason.MAX_TOKENS, 1, None, 0.0)

    def caller(request: Request, text: str) -> Reply:
        return Reply(call(1))

    leaf = make_collector(caller).collect([0], GroupPlan(size=1), seed=0)[0].leaves[0]
    assert (leaf.stop_reason, leaf.num_turns, leaf.tool_calls) == (StopReason.MAX_TURNS, 6, {"add": 6})

    tree = make_collector(caller, max_episode_tokens=700).collect([0], GroupPlan(size=1), seed=0)[0]
    assert tree.leaves[0].stop_reason is StopReason.MAX_TOKENS
    assert tree.num_tokens <= 700
    assert tree.segments[-1].origin == "assistant"  # the result that no longer fitted is not recorded


def test_an_environment_that_cannot_fork_refuses_to_branch(make_collector: Any) -> None:

    class Unforkable(Counter):
        idempotent = False
        fork = Counter.__mro__[1].fork  # the base class's: state, but no fork

    class Stuck(Counting):
        tools = (Unforkable(),)

    with pytest.raises(ForkError, match="add"):
        make_collector(env=Stuck).collect([0], branching(BranchRule.RANDOM, alpha=1.0), seed=0)
    assert len(make_collector(env=Stuck).collect([0], GroupPlan(size=3), seed=0)[0].leaves) == 3


def test_a_group_must_start_alike(make_collector: Any) -> None:

    class Fickle(Counting):
        def tasks(self, split: str) -> Any:
            return [Task("t", f"Count to {random.random()}.", "1")]

    with pytest.raises(ConfigError, match="must start alike"):
        make_collector(env=Fickle).collect([0], GroupPlan(size=2), seed=0)


class CountingPolicy(TransformersPolicy):
    """Remembers what was asked, to count unique tokens from outside the engine."""

    completions: list[Completion]

    def poll(self) -> list[Completion]:
        done = super().poll()
        self.completions = [*getattr(self, "completions", []), *done]
        return done


@pytest.mark.parametrize("rule", [BranchRule.NONE, *RULES])
def test_a_real_rollout_computes_every_unique_token_at_most_once(
    make_collector: Any, tiny_llama: Any, byte_tokenizer: Any, rule: BranchRule
) -> None:
    """Tool calls come from a model that can only stammer: the environment answers every turn as a failed call."""

    class Answering(Counting):
        """Every turn is taken for a call, so that there are results to branch after."""

        def step(self, action: str) -> Any:
            return super().step("<tool_call>\n{}\n</tool_call>")

    policy = CountingPolicy(tiny_llama, byte_tokenizer, [byte_tokenizer.eos_token_id, *range(100, 160)])
    plan = GroupPlan(size=6) if rule is BranchRule.NONE else branching(rule, size=6, initial=3, alpha=0.6)
    trees = make_collector(env=Answering, policy=policy).collect([0, 1], plan, seed=2)
    unique = sum(tree.num_tokens for tree in trees)
    leaves = sum(len(tree.leaves) for tree in trees)
    computed = policy.counters.prefilled_tokens + policy.counters.decoded_tokens
    # Nobody needs what follows a leaf, so the last token of each is not fed; a late branch from a prompt or a result
    # whose next-token logits were dropped feeds one token again.
    assert unique - leaves <= computed <= unique
