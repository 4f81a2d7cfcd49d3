"""When to branch: the rules of ARPO and AEPO, and a ledger that spends a group's budget in an order of its own.

A **moment** is a tool result that a trajectory has answered with a further turn. Its children resample that turn from
the state right after the tool result. What a rule compares is the entropy of the tokens sampled there with the entropy
of the trajectory's first turn (ARPO, arXiv:2507.19849, section 3.2; the released code's rule and its lag are in
algorithms reference section 4.3).

Moments are settled in the order (turn, trajectory), not in the order in which tools happen to answer. A trajectory
never waits for its moment to be settled; only the branches do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.seeding import generator

TrackKey: TypeAlias = tuple[int, ...]
"""Where a trajectory comes from: (i,) for the i-th sampled from the prompt, parent + (turn, j) for a branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A chance to branch.

    Example:
        Moment(track=(2,), turn=1, change=0.08, lagged_change=0.0)
    """

    track: TrackKey
    turn: int
    """The turn sampled after the tool result; at least 1."""
    change: float
    """Normalised entropy of this turn's first tokens minus that of the trajectory's first turn (paper: dH)."""
    lagged_change: float
    """The same for the turn before, which led to the tool call (released code)."""
    streak: int = 0
    """Moments right before this one, on the same path, at which the rule would branch (AEPO: l)."""

    @property
    def order(self) -> tuple[int, TrackKey]:
        """Position in the order in which a group's moments are settled."""
        return self.turn, self.track


def opening_entropy(entropies: Sequence[float], num_tokens: int, vocab_size: int) -> float:
    """Mean entropy of the first tokens of a turn, as a share of the largest possible one.

    The mean, where the released code sums, does not grow with the length of short turns.

    >>> round(opening_entropy([math.log(4), 0.0, 9.9], num_tokens=2, vocab_size=16), 6)
    0.25
    """
    first = entropies[:num_tokens]
    return sum(first) / len(first) / math.log(vocab_size) if first else 0.0


def branch_probability(change: float, alpha: float, beta: float) -> float:
    """P = clip(alpha + beta * dH, 0, 1): exact for the coin in the released code.

    >>> [round(branch_probability(dh, 0.5, 0.2), 2) for dh in (-1, 0, 0.3, 1, 3)]
    [0.3, 0.5, 0.56, 0.7, 1.0]
    """
    return min(1.0, max(0.0, alpha + beta * change))


def penalized_score(change: float, streak: int, plan: GroupPlan) -> float:
    """P = (alpha + beta * dH) * max(0, 1 - branch_penalty * c): what AEPO (arXiv:2510.14545) compares with tau.

    >>> plan = GroupPlan(size=2, initial=1, rule=BranchRule.AEPO)
    >>> [round(penalized_score(0.5, c, plan), 3) for c in (0, 1, 2, 20)]
    [0.6, 0.57, 0.54, 0.0]
    """
    return (plan.alpha + plan.beta * change) * max(0.0, 1.0 - plan.branch_penalty * streak)


def num_global(root: float, tool: float, plan: GroupPlan) -> int:
    """How many of a dynamic group's trajectories start at the prompt (the formula is `GroupPlan`'s).

    Times `probe_tokens`, the means are the sums that the released code compares, with its factor 0.5.

    >>> [num_global(0.3 + d / 20, 0.3, GroupPlan(size=16, rule=BranchRule.AEPO, dynamic=True)) for d in (-2, 0, 2)]
    [5, 9, 12]

    Args:
        root: Opening entropy of the first turn.
        tool: Mean opening entropy of the turns after a tool result.
        plan: A dynamic plan.
    """
    gap = 0.5 * plan.probe_tokens * (root - tool)
    share = 0.5 * (1.0 + math.tanh(gap / 2.0))  # the sigmoid, without overflow
    return min(plan.size, int(plan.size * share) + 1)


def _paper(moment: Moment, plan: GroupPlan, coin: Callable[[], float]) -> int:
    return plan.max_branches if plan.alpha + plan.beta * moment.change > plan.tau else 0


def _reference(moment: Moment, plan: GroupPlan, coin: Callable[[], float]) -> int:
    probability = branch_probability(moment.lagged_change, plan.alpha, plan.beta)
    return sum(coin() < probability for _ in range(plan.max_branches))


def _aepo(moment: Moment, plan: GroupPlan, coin: Callable[[], float]) -> int:
    return plan.max_branches if penalized_score(moment.change, moment.streak, plan) > plan.tau else 0


def _random(moment: Moment, plan: GroupPlan, coin: Callable[[], float]) -> int:
    return sum(coin() < plan.alpha for _ in range(plan.max_branches))


def _always(moment: Moment, plan: GroupPlan, coin: Callable[[], float]) -> int:
    return plan.max_branches


def _never(moment: Moment, plan: GroupPlan, coin: Callable[[], float]) -> int:
    return 0


_WISHES: Mapping[BranchRule, Callable[[Moment, GroupPlan, Callable[[], float]], int]] = {
    BranchRule.NONE: _never,
    BranchRule.PAPER: _paper,
    BranchRule.REFERENCE: _reference,
    BranchRule.AEPO: _aepo,
    BranchRule.RANDOM: _random,
    BranchRule.TOP_ENTROPY: _always,
    BranchRule.RANDOM_NODES: _always,
}


class BranchLedger:
    """Spends one group's branch budget.

    Args:
        plan: Rule, weights and budget.
        seed: Of the group; a moment's coins depend on it and on the moment alone.
    """

    def __init__(self, plan: GroupPlan, seed: int) -> None:
        self._plan = plan
        self._seed = seed
        self._open: dict[Moment, int] = {}
        self.budget = plan.branch_budget

    def wish(self, moment: Moment) -> int:
        """Enters a moment and returns how many branches it would like; 0 if it need not be remembered.

        The caller keeps what it takes to branch there until `settle` or `outranked` names the moment.
        """
        if not self.budget:
            return 0
        coins = generator(self._seed, "branch", *moment.track, moment.turn)
        wanted = _WISHES[self._plan.rule](moment, self._plan, lambda: float(coins.random()))
        if wanted:
            self._open[moment] = wanted
        return wanted

    def settle(self, upcoming: Mapping[TrackKey, int]) -> list[tuple[Moment, int]]:
        """The moments that can be decided now, with the branches each gets (0 if the budget is spent).

        Args:
            upcoming: Of every trajectory that is still running, the earliest turn at which it may have a moment.

        Returns:
            Decided moments in order; they leave the ledger.
        """
        if self._plan.rule is BranchRule.TOP_ENTROPY:
            return self._settle_ranking() if not upcoming else []
        settled: list[tuple[Moment, int]] = []
        for moment in sorted(self._open, key=_order):
            if any((turn, track) < moment.order for track, turn in upcoming.items()):
                break  # an earlier moment may still come and has the first claim on the budget
            granted = self._grant(moment)
            settled.append((moment, granted))
            if granted:
                break  # its children may have moments before the next one
        return settled

    def withdraw(self, moment: Moment) -> None:
        """Takes a moment back at which branching turned out to be impossible."""
        del self._open[moment]

    def outranked(self) -> list[Moment]:
        """Moments of a ranking that can no longer win; they leave the ledger, which bounds what is kept for them."""
        if self._plan.rule is not BranchRule.TOP_ENTROPY:
            return []
        losers = sorted(self._open, key=_rank)[self.budget :]
        for moment in losers:
            del self._open[moment]
        return losers

    def __contains__(self, moment: Moment) -> bool:
        """Whether the moment may still get branches."""
        return moment in self._open

    @property
    def unsettled(self) -> bool:
        """Whether a moment waits to be decided."""
        return bool(self._open)

    def _settle_ranking(self) -> list[tuple[Moment, int]]:
        return [(moment, self._grant(moment)) for moment in sorted(self._open, key=_rank)]

    def _grant(self, moment: Moment) -> int:
        granted = min(self._open.pop(moment), self.budget)
        self.budget -= granted
        return granted


def _order(moment: Moment) -> tuple[int, TrackKey]:
    return moment.order


def _rank(moment: Moment) -> tuple[float, tuple[int, TrackKey]]:
    """Largest entropy change first; ties in the ledger's order."""
    return -moment.change, moment.order
