"""Trees that grow at random nodes: which nodes are drawn, how often, and what grows there."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_scripts import Counter as CounterTool
from rollout_scripts import Counting, call

from agentrl.policies.core import Request
from agentrl.policies.scripted import Reply
from agentrl.rollout.branching import BranchLedger, Moment, TrackKey
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.rollout.random_nodes import NodeLedger, ledger_for
from agentrl.seeding import generator
from agentrl.trajectory import Tree


def trees(size: int, initial: int, rounds: int = 1) -> GroupPlan:
    return GroupPlan(size=size, initial=initial, rounds=rounds, rule=BranchRule.RANDOM_NODES)


def node(track: TrackKey, turn: int) -> Moment:
    return Moment(track=track, turn=turn, change=0.0, lagged_change=0.0)


# The ledger -----------------------------------------------------------------------------------------------------------


def test_the_rule_has_a_ledger_of_its_own() -> None:
    assert type(ledger_for(trees(6, 2), 0)) is NodeLedger
    assert type(ledger_for(GroupPlan(size=6, initial=2, rule=BranchRule.RANDOM), 0)) is BranchLedger


def test_all_nodes_are_equally_likely_and_draws_are_independent() -> None:
    """Four nodes, two draws, 4000 groups: each node 2000 of 8000 times, twice the same node in 1000 groups.

    Within four standard deviations: sqrt(8000 * 1/4 * 3/4) = 38.7 and sqrt(4000 * 1/4 * 3/4) = 27.4.
    """
    counts: Counter[int] = Counter()
    twice = 0
    for seed in range(4000):
        book = NodeLedger(trees(3, 1), seed)
        for turn in range(4):
            assert book.wish(node((0,), turn))
            book.outranked()
        settled = book.settle({})
        assert sum(granted for _, granted in settled) == 2
        counts.update({moment.turn: granted for moment, granted in settled})
        twice += len(settled) == 1
    assert all(abs(counts[turn] - 2000) <= 155 for turn in range(4))
    assert abs(twice - 1000) <= 110


def test_a_tree_waits_for_its_own_trajectories_only() -> None:
    book = NodeLedger(trees(4, 2), seed=0)
    for tree in (0, 1):
        book.wish(node((tree,), 0))
    assert book.settle({(0,): 1, (1,): 1}) == []
    assert book.settle({(0,): 1}) == [(node((1,), 0), 1)]
    assert node((1,), 0) not in book
    assert book.unsettled
    assert book.settle({(1, 0, 0): 1}) == [(node((0,), 0), 1)]
    assert not book.unsettled
    assert book.wish(node((1, 0, 0), 1)) == 0  # grown up
    assert book.wish(node((2,), 0)) == 0  # not one of the trees


def test_a_node_that_leads_in_a_later_round_stays() -> None:
    book = NodeLedger(trees(3, 1, rounds=2), seed=0)
    book.wish(node((0,), 0))
    assert book.outranked() == []
    assert book.settle({}) == [(node((0,), 0), 1)]
    assert node((0,), 0) in book
    assert book.settle({}) == [(node((0,), 0), 1)]
    assert node((0,), 0) not in book
    assert (book.budget, book.unsettled) == (0, False)


def test_a_withdrawn_node_is_not_drawn() -> None:
    book = NodeLedger(trees(2, 1), seed=0)
    for turn in range(2):
        book.wish(node((0,), turn))
    book.withdraw(node((0,), 0))
    assert book.settle({}) == [(node((0,), 1), 1)]


def test_a_tree_without_a_node_leaves_its_share_to_the_top_up() -> None:
    book = NodeLedger(trees(4, 2), seed=0)
    book.wish(node((1,), 0))
    assert book.settle({}) == [(node((1,), 0), 1)]
    assert book.budget == 1


# Against a plain replay -----------------------------------------------------------------------------------------------


def num_turns(seed: int, key: TrackKey) -> int:
    return (key[-2] if len(key) > 1 else 0) + int(generator(seed, "turns", *key).integers(1, 5))


def replayed(plan: GroupPlan, seed: int) -> Counter[tuple[TrackKey, int]]:
    """Tree by tree and round by round, with all nodes at hand."""
    grants: Counter[tuple[TrackKey, int]] = Counter()
    for tree in range(plan.num_initial):
        nodes = [((tree,), turn) for turn in range(num_turns(seed, (tree,)))]
        for number in range(plan.rounds):
            born: list[tuple[TrackKey, int]] = []
            for draw in range(plan.draws):
                luck = {n: generator(seed, "node", *n[0], n[1]).random((plan.rounds, plan.draws)) for n in nodes}
                key, turn = min(nodes, key=lambda n: float(luck[n][number, draw]))
                child = (*key, turn, grants[key, turn])
                grants[key, turn] += 1
                born.extend((child, later) for later in range(turn + 1, num_turns(seed, child)))
            nodes += born
    return grants


def arrived(plan: GroupPlan, seed: int, order: random.Random) -> Counter[tuple[TrackKey, int]]:
    """Trajectories advance in an arbitrary order, and the ledger is asked now and then."""
    book = NodeLedger(plan, seed)
    grants: Counter[tuple[TrackKey, int]] = Counter()
    running: dict[TrackKey, tuple[int, int]] = {(i,): (0, 0) for i in range(plan.num_initial)}
    while running or book.unsettled:
        if running:
            key = order.choice(sorted(running))
            turn, first = running.pop(key)
            if turn >= first and book.wish(node(key, turn)):
                book.outranked()
            if turn + 1 < num_turns(seed, key):
                running[key] = (turn + 1, first)
        assert len(book._open) <= plan.num_initial * plan.rounds * plan.draws, "more is remembered than can be drawn"
        if running and order.random() < 0.3:
            continue
        while settled := book.settle(dict.fromkeys(running, 0)):
            for moment, granted in settled:
                for _ in range(granted):
                    place = moment.track, moment.turn
                    running[(*moment.track, moment.turn, grants[place])] = (moment.turn, moment.turn + 1)
                    grants[place] += 1
    assert book.budget == 0
    return grants


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    order=st.randoms(use_true_random=False),
    initial=st.integers(1, 3),
    rounds=st.integers(1, 3),
    draws=st.integers(1, 3),
)
def test_the_same_nodes_whatever_the_order_of_arrival(
    seed: int, order: random.Random, initial: int, rounds: int, draws: int
) -> None:
    plan = trees(initial * (1 + rounds * draws), initial, rounds)
    expected = replayed(plan, seed)
    assert sum(expected.values()) == plan.branch_budget
    assert arrived(plan, seed, order) == expected


def test_the_replay_is_no_empty_comparison() -> None:
    """Prompts, tool results, one node several times, and nodes of branches are all drawn somewhere."""
    drawn = [replayed(trees(14, 2, rounds=3), seed) for seed in range(20)]
    places = [place for grants in drawn for place in grants]
    assert any(turn == 0 for _, turn in places)
    assert any(turn > 0 for _, turn in places)
    assert any(len(key) > 1 for key, _ in places)
    assert any(count > 1 for grants in drawn for count in grants.values())


# In a rollout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "initial", "rounds"), [(6, 2, 1), (14, 2, 3), (8, 4, 1), (5, 1, 2)])
def test_every_tree_gets_its_size(make_collector: Any, size: int, initial: int, rounds: int) -> None:
    """(6, 2, 1): two trees of three leaves each."""
    plan = trees(size, initial, rounds)
    fresh = forked = 0
    for tree in make_collector().collect(range(8), plan, seed=3):
        assert Counter(leaf.root for leaf in tree.leaves) == dict.fromkeys(range(initial), size // initial)
        for root in range(initial):
            leaves = [leaf for leaf in tree.leaves if leaf.root == root]
            assert leaves[0].fork_of is None  # the trajectory that the tree began with
            fresh += sum(leaf.fork_of is None for leaf in leaves[1:])
            forked += sum(leaf.fork_of is not None for leaf in leaves)
            for leaf in leaves:
                if leaf.fork_of is not None:  # it shares a tool result with another trajectory of its own tree
                    others = [other for other in leaves if other is not leaf]
                    assert any(leaf.fork_of in {s.id for s in tree.path(other.segment)} for other in others)
    assert fresh > 0
    assert forked > 0


def test_a_trajectory_without_a_tool_result_grows_at_the_prompt(make_collector: Any) -> None:
    def answer(request: Request, text: str) -> Reply:
        return Reply(f"no {request.seed % 1000}")

    tree: Tree = make_collector(answer).collect([0], trees(6, 2), seed=0)[0]
    assert [(leaf.root, leaf.fork_of) for leaf in tree.leaves] == [(0, None)] * 3 + [(1, None)] * 3
    assert len({leaf.answer for leaf in tree.leaves}) == 6  # each is sampled anew
    assert len(tree.segments) == 7


def test_a_node_whose_environment_cannot_be_copied_now_is_made_up_for(make_collector: Any) -> None:
    """Results that cannot be repeated: the prompt can be copied, since nothing was called yet."""

    class Unrepeatable(CounterTool):
        fork = CounterTool.__mro__[1].fork  # type: ignore[assignment]

        def call(self, arguments: Any) -> str:
            return f"{super().call(arguments)}, {id(self)}"

    class Env(Counting):
        tools = (Unrepeatable(),)

    def script(request: Request, text: str) -> Reply:
        return Reply("done") if "tool_response" in text else Reply(call(1))

    tree = make_collector(script, Env).collect([0], trees(9, 3), seed=0)[0]
    assert Counter(leaf.root for leaf in tree.leaves) == {0: 3, 1: 3, 2: 3}
    assert all(leaf.fork_of is None for leaf in tree.leaves)
    assert tree.metadata["failed_forks"] >= 3
