"""Branch rules against their formulas, and the ledger against a plain replay in order."""

import heapq
import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from agentrl.rollout.branching import (
    BranchLedger,
    Moment,
    TrackKey,
    branch_probability,
    num_global,
    opening_entropy,
    penalized_score,
)
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.seeding import generator

RULES = [BranchRule.PAPER, BranchRule.REFERENCE, BranchRule.AEPO, BranchRule.RANDOM, BranchRule.TOP_ENTROPY]


def moment(track: int, turn: int = 1, change: float = 0.0, lagged: float = 0.0) -> Moment:
    return Moment(track=(track,), turn=turn, change=change, lagged_change=lagged)


def ledger(rule: BranchRule, budget: int = 100, seed: int = 0, **changes: float) -> BranchLedger:
    return BranchLedger(GroupPlan(size=budget + 1, initial=1, rule=rule, **changes), seed)  # type: ignore[arg-type]


# Numbers --------------------------------------------------------------------------------------------------------------


def test_opening_entropy() -> None:
    """(ln 4 + ln 2 + 0) / 3 / ln 16 = 3 ln 2 / 3 / 4 ln 2 = 1/4; the fourth token does not count."""
    entropies = [math.log(4), math.log(2), 0.0, 5.0]
    assert opening_entropy(entropies, num_tokens=3, vocab_size=16) == pytest.approx(0.25, abs=1e-12)
    assert opening_entropy(entropies[:2], num_tokens=20, vocab_size=16) == pytest.approx(0.375, abs=1e-12)  # 3/2 / 4
    assert opening_entropy([math.log(16)] * 7, num_tokens=5, vocab_size=16) == pytest.approx(1.0, abs=1e-12)
    assert opening_entropy([], num_tokens=5, vocab_size=16) == 0.0


@pytest.mark.parametrize(
    ("change", "probability"),
    [(-1, 0.3), (0, 0.5), (0.3, 0.56), (1, 0.7), (3, 1.0), (2.5, 1.0), (-2.5, 0.0), (-9, 0.0)],
)
def test_branch_probability(change: float, probability: float) -> None:
    """0.5 + 0.2 dH: 0.5 - 0.2 = 0.3, 0.5 + 0.06 = 0.56, 0.5 + 0.6 = 1.1 -> 1, 0.5 - 1.8 -> 0."""
    assert branch_probability(change, alpha=0.5, beta=0.2) == pytest.approx(probability, abs=1e-12)


@pytest.mark.parametrize("change", [-3.0, -1.0, 0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("max_branches", [1, 3])
def test_frequencies_of_the_coins(change: float, max_branches: int) -> None:
    """Within four standard deviations of the formula; the other one's change is far away and must not matter."""
    count = 4000
    for rule, probability in (
        (BranchRule.REFERENCE, min(1.0, max(0.0, 0.4 + 0.25 * change))),
        (BranchRule.RANDOM, 0.4),
    ):
        book = ledger(rule, alpha=0.4, beta=0.25, max_branches=max_branches)
        wishes = [book.wish(moment(i, change=-9.0 * change, lagged=change)) for i in range(count)]
        coins = count * max_branches
        sigma = math.sqrt(probability * (1 - probability) / coins)
        assert abs(sum(wishes) / coins - probability) <= 4 * sigma
        if 0.0 < probability < 1.0:
            assert set(wishes) == set(range(max_branches + 1))  # coins of one moment are independent


def test_coins_depend_on_seed_and_moment_only() -> None:
    """Neither the entropy nor what was asked before changes which number is drawn."""

    def wishes(seed: int, order: list[int]) -> dict[int, int]:
        book = ledger(BranchRule.REFERENCE, seed=seed)
        return {i: book.wish(moment(i, turn=1 + i % 3)) for i in order}

    forwards = wishes(1, list(range(300)))
    assert wishes(1, list(range(299, -1, -1))) == forwards
    assert wishes(2, list(range(300))) != forwards
    by_turn = [ledger(BranchRule.RANDOM).wish(moment(0, turn=turn)) for turn in range(1, 200)]
    assert 70 < sum(by_turn) < 130  # another coin at every turn: 99.5 expected, standard deviation 7


@pytest.mark.parametrize(("change", "branches"), [(-1.0, 0), (-1e-6, 0), (0.0, 0), (1e-6, 2), (1.0, 2)])
def test_the_papers_rule_is_a_threshold(change: float, branches: int) -> None:
    """With alpha = tau it branches iff dH > 0; what led to the call does not matter."""
    book = ledger(BranchRule.PAPER, alpha=0.5, beta=0.2, tau=0.5, max_branches=2)
    assert book.wish(moment(0, change=change, lagged=-5 * change)) == branches
    assert book.unsettled == (branches > 0)


def test_the_papers_threshold_moves_with_tau() -> None:
    """0.5 + 0.2 dH > 0.6 iff dH > 0.5."""
    book = ledger(BranchRule.PAPER, alpha=0.5, beta=0.2, tau=0.6)
    assert [book.wish(moment(i, change=change)) for i, change in enumerate((0.49, 0.51))] == [0, 1]


@pytest.mark.parametrize(
    ("change", "streak", "score"),
    [(0.0, 0, 0.5), (0.0, 1, 0.475), (0.0, 2, 0.45), (0.5, 2, 0.54), (1.0, 10, 0.35), (9.0, 20, 0.0), (9.0, 21, 0.0)],
)
def test_aepos_score_falls_with_every_branching_in_a_row(change: float, streak: int, score: float) -> None:
    """(0.5 + 0.2 dH)(1 - 0.05 c): 0.5 * 0.95, 0.5 * 0.9, 0.6 * 0.9, 0.7 * 0.5, and nothing from c = 20 on."""
    plan = GroupPlan(size=2, initial=1, rule=BranchRule.AEPO)
    assert penalized_score(change, streak, plan) == pytest.approx(score, abs=1e-12)


def test_aepo_branches_above_the_threshold_only() -> None:
    """After one branching, (0.5 + 0.2 dH) * 0.95 > 0.5 iff dH > 0.5 / 0.19 - 2.5 = 0.1316; after two, iff > 0.2778."""
    book = ledger(BranchRule.AEPO, max_branches=2)
    cases = [(0.0, 0), (1e-6, 0), (0.131, 1), (0.132, 1), (0.277, 2), (0.278, 2), (9.0, 20)]
    moments = [Moment(track=(i,), turn=3, change=c, lagged_change=-c, streak=s) for i, (c, s) in enumerate(cases)]
    assert [book.wish(m) for m in moments] == [0, 2, 0, 2, 0, 2, 0]
    free = ledger(BranchRule.AEPO, branch_penalty=0.0)
    assert [free.wish(m) for m in moments] == [0, 1, 1, 1, 1, 1, 1]  # without a penalty it is the paper's rule of ARPO


@pytest.mark.parametrize(
    ("gap", "size", "expected"),
    [(-2.0, 16, 5), (0.0, 16, 9), (2.0, 16, 12), (0.0, 8, 5), (50.0, 16, 16), (-5000.0, 16, 1), (5000.0, 3, 3)],
)
def test_how_many_start_at_the_prompt_in_a_dynamic_group(gap: float, size: int, expected: int) -> None:
    """Sums of 20 entropies that differ by -2, 0, 2: 16 * (0.2689, 0.5, 0.7311) = 4.3, 8, 11.7, rounded down plus 1."""
    plan = GroupPlan(size=size, rule=BranchRule.AEPO, dynamic=True)
    assert num_global(0.4 + gap / 20, 0.4, plan) == expected
    ten = GroupPlan(size=size, rule=BranchRule.AEPO, dynamic=True, probe_tokens=10)
    assert num_global(0.4 + gap / 10, 0.4, ten) == expected


def test_never_and_always() -> None:
    book = BranchLedger(GroupPlan(size=4), seed=0)
    assert book.wish(moment(0, change=9.0)) == 0
    assert not book.unsettled
    assert ledger(BranchRule.TOP_ENTROPY, max_branches=2).wish(moment(0, change=-9.0)) == 2


# The ledger -----------------------------------------------------------------------------------------------------------


def test_an_earlier_moment_that_may_still_come_is_waited_for() -> None:
    book = ledger(BranchRule.PAPER, budget=1)
    late, early = moment(1, turn=2, change=1.0), moment(0, turn=2, change=1.0)
    assert book.wish(late)
    assert book.settle({(0,): 2, (1,): 3}) == []  # trajectory 0 comes first at turn 2
    assert book.settle({(0,): 1, (1,): 3}) == []
    assert book.wish(early)
    assert book.settle({(0,): 3, (1,): 3}) == [(early, 1)]
    assert book.settle({(0,): 3, (1,): 3}) == [(late, 0)]  # the budget is spent
    assert not book.unsettled
    assert book.wish(moment(2, turn=5, change=1.0)) == 0


def test_a_later_moment_is_not_waited_for() -> None:
    book = ledger(BranchRule.PAPER)
    first = moment(0, turn=2, change=1.0)
    assert book.wish(first)
    assert book.settle({(0,): 3, (1,): 2}) == [(first, 1)]  # (2, (0,)) comes before (2, (1,))


def test_after_a_grant_its_children_come_before_the_next_moment() -> None:
    book = ledger(BranchRule.PAPER, budget=2)
    first, second = moment(0, turn=1, change=1.0), moment(0, turn=3, change=1.0)
    assert book.wish(first)
    assert book.wish(second)
    assert book.settle({}) == [(first, 1)]
    assert book.settle({(0, 1, 0): 2}) == []  # the child may have a moment at turn 2
    child = Moment(track=(0, 1, 0), turn=2, change=1.0, lagged_change=0.0)
    assert book.wish(child)
    assert book.settle({}) == [(child, 1)]
    assert book.settle({}) == [(second, 0)]


def test_a_withdrawn_moment_leaves_its_share_to_others() -> None:
    book = ledger(BranchRule.PAPER, budget=1)
    first, second = moment(0, change=1.0), moment(1, change=1.0)
    assert book.wish(first)
    assert book.wish(second)
    book.withdraw(first)
    assert book.settle({}) == [(second, 1)]
    assert book.budget == 0


def test_the_ranking_spends_the_budget_on_the_highest() -> None:
    book = ledger(BranchRule.TOP_ENTROPY, budget=3, max_branches=2)
    changes = [0.1, 0.9, -0.5, 0.4, 0.9]
    moments = [moment(i, change=change, lagged=-change) for i, change in enumerate(changes)]
    assert all(book.wish(m) == 2 for m in moments)
    assert book.settle({(9,): 1}) == []  # somebody still runs
    assert book.outranked() == [moments[0], moments[2]]  # three moments can use up a budget of three
    assert book.settle({}) == [(moments[1], 2), (moments[4], 1), (moments[3], 0)]  # a tie goes to the first
    assert book.budget == 0
    assert not book.unsettled


def test_other_rules_forget_nothing() -> None:
    book = ledger(BranchRule.PAPER, budget=1)
    for i in range(4):
        book.wish(moment(i, change=1.0))
    assert book.outranked() == []


# Against a plain replay -----------------------------------------------------------------------------------------------


class World:
    """How long every trajectory would last and what it would see: a function of where it is in the tree."""

    def __init__(self, seed: int, plan: GroupPlan) -> None:
        self.seed = seed
        self.plan = plan

    def last_turn(self, key: TrackKey) -> int:
        least = key[-2] if len(key) > 1 else 0  # a branch resamples the turn it was made at
        return max(least, int(generator(self.seed, "last turn", *key).integers(0, 6)))

    def moment(self, key: TrackKey, turn: int) -> Moment:
        change, lagged = generator(self.seed, "change", *key, turn).normal(size=2).round(1).tolist()
        return Moment(track=key, turn=turn, change=change, lagged_change=lagged, streak=self.streak(key, turn))

    def streak(self, key: TrackKey, turn: int) -> int:
        """Moments in a row right before this one that AEPO would branch at, back along the path and its parents."""
        if self.plan.rule is not BranchRule.AEPO:
            return 0
        count = 0
        while turn > 1:
            turn -= 1
            while len(key) > 1 and turn <= key[-2]:
                key = key[:-2]
            if not self.wanted(self.moment(key, turn)):
                break
            count += 1
        return count

    def wanted(self, m: Moment) -> int:
        coins = generator(self.seed, "branch", *m.track, m.turn)
        plan, rule = self.plan, self.plan.rule
        if rule is BranchRule.PAPER:
            return plan.max_branches * (plan.alpha + plan.beta * m.change > plan.tau)
        if rule is BranchRule.AEPO:
            factor = max(0.0, 1 - plan.branch_penalty * m.streak)
            return plan.max_branches * ((plan.alpha + plan.beta * m.change) * factor > plan.tau)
        if rule is BranchRule.TOP_ENTROPY:
            return plan.max_branches
        p = plan.alpha + (plan.beta * m.lagged_change if rule is BranchRule.REFERENCE else 0.0)
        return sum(coins.random() < p for _ in range(plan.max_branches))


def children(m: Moment, granted: int) -> Iterator[TrackKey]:
    return ((*m.track, m.turn, number) for number in range(granted))


def replayed(world: World) -> dict[Moment, int]:
    """Grants when moments come one by one in order (for the ranking: generation by generation, best first)."""
    budget = world.plan.branch_budget
    grants: dict[Moment, int] = {}
    ranking = world.plan.rule is BranchRule.TOP_ENTROPY
    heap = [(1, (i,)) for i in range(world.plan.num_initial) if world.last_turn((i,)) >= 1]
    generation: list[Moment] = []
    while heap or generation:
        if heap:
            turn, key = heapq.heappop(heap)
            candidate = world.moment(key, turn)
            generation.append(candidate)
            if turn < world.last_turn(key):
                heapq.heappush(heap, (turn + 1, key))
            if ranking and heap:
                continue
        for m in sorted(generation, key=lambda m: (-m.change if ranking else 0.0, m.turn, m.track)):
            granted = min(world.wanted(m), budget)
            budget -= granted
            if granted:
                grants[m] = granted
            for child in children(m, granted):
                if m.turn < world.last_turn(child):
                    heapq.heappush(heap, (m.turn + 1, child))
        generation = []
    return grants


def arrived(world: World, pick: Callable[[int], int]) -> dict[Moment, int]:
    """Grants when trajectories advance in an arbitrary order and the ledger is asked now and then."""
    book = BranchLedger(world.plan, world.seed)
    grants: dict[Moment, int] = {}
    running: dict[TrackKey, tuple[int, int]] = {(i,): (0, 1) for i in range(world.plan.num_initial)}
    while running or book.unsettled:
        if running:
            key = sorted(running)[pick(len(running))]
            turn, first_moment = running.pop(key)
            if turn >= first_moment:
                book.wish(world.moment(key, turn))
                book.outranked()
            if turn < world.last_turn(key):
                running[key] = (turn + 1, first_moment)
        if running and pick(3) == 0:
            continue
        while settled := book.settle({key: max(turn, first) for key, (turn, first) in running.items()}):
            for m, granted in settled:
                if granted:
                    grants[m] = granted
                for child in children(m, granted):
                    running[child] = (m.turn, m.turn + 1)
    assert sum(grants.values()) + book.budget == world.plan.branch_budget
    return grants


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    order=st.randoms(use_true_random=False),
    rule=st.sampled_from(RULES),
    initial=st.integers(1, 5),
    budget=st.integers(1, 8),
    max_branches=st.integers(1, 3),
)
def test_the_same_grants_whatever_the_order_of_arrival(
    seed: int, order: random.Random, rule: BranchRule, initial: int, budget: int, max_branches: int
) -> None:
    plan = GroupPlan(size=initial + budget, initial=initial, rule=rule, max_branches=max_branches)
    world = World(seed, plan)
    expected = replayed(world)
    assert sum(expected.values()) <= budget
    assert arrived(world, order.randrange) == expected
    assert arrived(world, lambda n: n - 1) == expected  # the last first
    assert arrived(world, lambda n: 0) == expected


def test_the_replay_is_no_empty_comparison() -> None:
    """In most worlds something is granted, also to branches of branches."""
    for rule in RULES:
        plan = GroupPlan(size=12, initial=4, rule=rule)
        worlds = [replayed(World(seed, plan)) for seed in range(20)]
        assert sum(bool(grants) for grants in worlds) >= 15
        assert any(len(m.track) > 1 for grants in worlds for m in grants)


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": 0}, "at least one trajectory"),
        ({"initial": 0}, "initial must be between 1 and size=8"),
        ({"initial": 9, "rule": BranchRule.PAPER}, "initial must be between 1 and size=8"),
        ({"initial": 4}, "needs a branch rule"),
        ({"rule": BranchRule.PAPER}, "initial < size"),
        ({"rule": BranchRule.PAPER, "initial": 8}, "initial < size"),
        ({"probe_tokens": 0}, "at least 1"),
        ({"max_branches": 0}, "at least 1"),
        ({"rounds": 0}, "at least 1"),
        ({"branch_penalty": -0.1}, "branch_penalty must be at least 0 and finite, got -0.1"),
        ({"branch_penalty": math.inf}, "branch_penalty"),
        ({"dynamic": True}, "which the branch rule 'none' leaves no room for"),
        ({"dynamic": True, "rule": BranchRule.RANDOM_NODES}, "'random_nodes' leaves no room"),
        ({"dynamic": True, "rule": BranchRule.AEPO, "initial": 4}, "finds initial itself, got initial=4"),
        ({"dynamic": True, "rule": BranchRule.AEPO, "size": 1}, "initial < size"),
        ({"rule": BranchRule.RANDOM_NODES, "initial": 3}, "size must be initial"),
        ({"rule": BranchRule.RANDOM_NODES, "initial": 2, "rounds": 2}, "got size=8, initial=2, rounds=2"),
    ],
)
def test_plans_that_do_not_fit_together(changes: dict[str, int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        GroupPlan(**changes)  # type: ignore[arg-type]


def test_budget_of_a_plan() -> None:
    plan = GroupPlan(size=16, initial=6, rule=BranchRule.PAPER)
    assert (plan.num_initial, plan.branch_budget) == (6, 10)
    assert (GroupPlan(size=5).num_initial, GroupPlan(size=5).branch_budget) == (5, 0)
    dynamic = GroupPlan(size=16, rule=BranchRule.AEPO, dynamic=True)
    assert (dynamic.num_initial, dynamic.branch_budget) == (1, 15)


@pytest.mark.parametrize(
    ("size", "initial", "rounds", "draws"),
    [(6, 2, 1, 2), (14, 2, 3, 2), (8, 4, 1, 1), (7, 1, 2, 3)],  # 2 (1 + 1 * 2), 2 (1 + 3 * 2), 4 (1 + 1), 1 + 2 * 3
)
def test_draws_of_a_plan_of_random_nodes(size: int, initial: int, rounds: int, draws: int) -> None:
    assert GroupPlan(size=size, initial=initial, rounds=rounds, rule=BranchRule.RANDOM_NODES).draws == draws
