"""Rollouts with a journal: names, branches, what an interrupted rollout repeats, and what forks never repeat."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rollout_scripts import Counter, Counting, call, random_script

from agentrl.call_records import RecordedEpisode, history, read_episodes
from agentrl.chat.template import ChatFormat
from agentrl.errors import ForkError
from agentrl.journal import Journal
from agentrl.messages import ToolCall
from agentrl.policies.core import Request
from agentrl.policies.scripted import Reply, ScriptedPolicy
from agentrl.rollout.collector import INTERRUPTED, Collector
from agentrl.rollout.continuation import Continuer, Prefix
from agentrl.rollout.demonstration import demonstrate
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.tools import tool
from agentrl.trajectory import Tree

BRANCHING = GroupPlan(size=6, initial=3, rule=BranchRule.RANDOM, alpha=1.0)
placed: list[int] = []


@tool(name="add", inline=True)
def order(amount: int) -> str:
    """Orders; cannot be taken back.

    Args:
        amount: How many. After 666 somebody presses Ctrl-C.
    """
    placed.append(amount)
    if amount == STOP_AT[0]:
        raise KeyboardInterrupt
    return f"total {amount}"


STOP_AT = [0]


class Ordering(Counting):
    """The counting environment with effects outside."""

    tools = (order,)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    placed.clear()
    STOP_AT[0] = 0
    journal = Journal(tmp_path)
    journal.begin("3")
    yield journal
    journal.close()


def recorded(journal: Journal) -> dict[str, RecordedEpisode]:
    return read_episodes(journal._folder / "3.jsonl")


def said(tree: Tree, leaf: Any, decode: Any) -> list[str]:
    """The amounts of the calls on a path."""
    return [decode(s.token_ids).split('"amount": ')[1].split("}")[0] for s in tree.path(leaf.segment)[1:-1:2]]


def test_every_path_has_its_calls_in_the_journal(make_collector: Any, byte_tokenizer: Any, journal: Journal) -> None:
    collector = make_collector()
    collector.journal = journal
    trees = [*collector.collect([3, 8], BRANCHING, seed=5), *collector.collect([4], BRANCHING, seed=6)]
    episodes = recorded(journal)
    names = [leaf.episode for tree in trees for leaf in tree.leaves]
    assert sorted(names) == sorted(episodes)
    assert len(set(names)) == 18
    branches = 0
    for number, tree in enumerate(trees):
        for leaf in tree.leaves:
            assert leaf.episode.startswith(f"3.{number}.{leaf.root}")
            assert (episodes[leaf.episode].task, episodes[leaf.episode].split) == (tree.metadata["task"], "train")
            assert (episodes[leaf.episode].parent is None) == (leaf.fork_of is None)
            calls = history(episodes, leaf.episode)
            amounts = [str(c.call.arguments["amount"]) for c in calls if isinstance(c.call, ToolCall)]
            assert amounts == said(tree, leaf, byte_tokenizer.decode)
            assert all(c.outcome and c.outcome.status == "ok" for c in calls)
            branches += leaf.fork_of is not None
    assert branches > 3


def test_without_a_journal_nothing_has_a_name(make_collector: Any) -> None:
    (tree,) = make_collector().collect([3], BRANCHING, seed=5)
    assert {leaf.episode for leaf in tree.leaves} == {None}


@pytest.mark.parametrize("plan", [GroupPlan(size=6), BRANCHING])
def test_an_interrupted_rollout_goes_on_and_orders_nothing_twice(
    make_collector: Any, tmp_path: Path, journal: Journal, plan: GroupPlan
) -> None:
    """Interrupted at every call in turn: Ctrl-C in a call leaves what a kill leaves, a call that has only begun."""
    whole = make_collector(env=Ordering)
    whole.journal = journal
    expected = whole.collect([3, 8], plan, seed=5)
    orders = list(placed)
    assert len(orders) > 12
    # Amounts differ enough for every call to be met at least once as the first of its kind.
    for amount in sorted(set(orders)):
        again = Journal(tmp_path / f"at-{amount}")
        again.begin("3")
        collector = make_collector(env=Ordering)
        collector.journal = again
        placed.clear()
        STOP_AT[0] = amount
        with pytest.raises(KeyboardInterrupt):
            collector.collect([3, 8], plan, seed=5)
        STOP_AT[0] = 0
        first = list(placed)
        assert first == orders[: len(first)]
        again.begin("3")
        collector = make_collector(env=Ordering)
        collector.journal = again
        trees = collector.collect([3, 8], plan, seed=5)
        again.close()
        assert len(again.discarded) == 1
        assert sum(tree.metadata.get(INTERRUPTED, 0) for tree in trees) == 1
        invalid = [leaf for tree in trees for leaf in tree.leaves if not leaf.valid]
        assert [leaf.episode for leaf in invalid] == again.discarded
        kept = {leaf.episode: (leaf.reward, leaf.answer) for tree in trees for leaf in tree.valid_leaves}
        # What was not discarded is as it would have been; only a branch of the discarded one can be missing.
        same = {leaf.episode: (leaf.reward, leaf.answer) for tree in expected for leaf in tree.leaves}
        if plan.rule is BranchRule.NONE:
            assert kept == {name: fact for name, fact in same.items() if name not in again.discarded}
            rest = [leaf.num_turns - 1 for tree in expected for leaf in tree.leaves if leaf.episode in again.discarded]
            done = next(leaf.num_turns for leaf in invalid)
            assert len(placed) == len(orders) - (sum(rest) - done - 1)
        else:
            roots = {name: fact for name, fact in kept.items() if "-" not in name}
            assert roots.items() <= same.items()


def test_an_episode_can_fork_whose_calls_may_not_be_repeated(
    make_collector: Any, byte_tokenizer: Any, journal: Journal
) -> None:
    trees = make_collector(env=Ordering).collect([3], BRANCHING, seed=5)
    sampled = [s for tree in trees for s in tree.segments if s.origin == "environment"]
    assert any(leaf.fork_of is not None for leaf in trees[0].leaves)
    assert len(placed) == len(sampled), "a tool without state is shared by the branches; its calls are made once"


class Renewed(Counter):
    """Keeps state that only repeating the calls can copy."""

    idempotent = False
    fork = Counter.__mro__[1].fork


def test_calls_that_may_not_be_repeated_are_not_repeated_to_fork(make_collector: Any) -> None:
    class Stuck(Counting):
        tools = (Renewed(),)

    with pytest.raises(ForkError, match=r"does not define fork.* add may not be called again \(idempotent=False\)"):
        make_collector(env=Stuck).collect([3], BRANCHING, seed=5)


def test_nor_to_go_back_to_the_middle_of_an_episode(byte_tokenizer: Any, chat: ChatFormat, journal: Journal) -> None:
    policy = ScriptedPolicy(byte_tokenizer, random_script, end_of_turn_id=chat.end_of_turn_id)
    continuer = Continuer(policy, chat, Ordering, vocab_size=len(byte_tokenizer))
    trees = continuer.collect([3], GroupPlan(size=2), seed=5)
    prefix = next(Prefix(trees[0], s.id) for s in trees[0].segments if s.origin == "environment")
    before = list(placed)
    with pytest.raises(ForkError, match="Turns that call tool 'add' cannot be played again"):
        continuer.continue_from([prefix], 2, seed=1)
    assert placed == before


def test_completions_are_recorded_as_branches_of_what_they_complete(
    byte_tokenizer: Any, chat: ChatFormat, journal: Journal
) -> None:
    policy = ScriptedPolicy(byte_tokenizer, random_script, end_of_turn_id=chat.end_of_turn_id)
    continuer = Continuer(policy, chat, Counting, vocab_size=len(byte_tokenizer))
    continuer.journal = journal
    (tree,) = continuer.collect([3], GroupPlan(size=2), seed=5)
    prefix = next(Prefix(tree, s.id) for s in tree.segments if s.origin == "environment")
    (leaves,) = continuer.continue_from([prefix], 3, seed=1)
    episodes = recorded(journal)
    assert [leaf.episode for leaf in leaves] == ["3.1.0", "3.1.1", "3.1.2"]
    for leaf in leaves:
        assert (episodes[leaf.episode].parent, episodes[leaf.episode].num_shared) == ("3.0.0", 1)
        assert history(episodes, leaf.episode)[0].call == episodes["3.0.0"].calls[0].call
        assert len(history(episodes, leaf.episode)) == leaf.num_turns - 1


def test_demonstrations_are_recorded(chat: ChatFormat, journal: Journal) -> None:
    turns = iter([call(3), call(4), "total 7"])
    tree = demonstrate(Counting(), chat, 5, lambda task, episode: next(turns), journal=journal)
    assert tree.leaves[0].episode == "3.0.0"
    assert [c.outcome.text for c in recorded(journal)["3.0.0"].calls if c.outcome] == ["total 3", "total 7"]


def test_a_failing_tool_is_recorded(make_collector: Any, journal: Journal) -> None:
    def breaks(request: Request, text: str) -> Reply:
        return Reply(call(666))

    collector: Collector = make_collector(breaks)
    collector.journal = journal
    (tree,) = collector.collect([0], GroupPlan(size=1), seed=0)
    assert not tree.leaves[0].valid
    (recorded_call,) = recorded(journal)["3.0.0"].calls
    assert recorded_call.outcome is not None
    assert recorded_call.outcome.status == "infrastructure"
    assert recorded_call.outcome.text == tree.leaves[0].error == "InfrastructureError: the counter's server is gone"
