"""Tree-GRPO's rule: trees that grow at nodes drawn at random (arXiv:2509.21240, section 3.1)."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from agentrl.rollout.branching import BranchLedger, Moment, TrackKey
from agentrl.rollout.plan import BranchRule, GroupPlan
from agentrl.seeding import generator


class NodeLedger(BranchLedger):
    """Draws the nodes at which trees grow; a moment of turn 0 is the prompt.

    Every node has a number of its own for each draw of each round, a function of the seed and of where the node is. A
    draw takes the node with the least one, so that all nodes of the tree are equally likely, draws are independent (a
    node may be drawn twice, as in the released code), and only nodes that lead in a draw need to be remembered.

    Args:
        plan: Number of trees, rounds and draws.
        seed: Of the group.
    """

    def __init__(self, plan: GroupPlan, seed: int) -> None:
        super().__init__(plan, seed)
        self._rounds_done = dict.fromkeys(range(plan.num_initial), 0)
        self._numbers: dict[Moment, NDArray[np.float64]] = {}

    def wish(self, moment: Moment) -> int:
        """Enters a node; 0 if its tree has grown up."""
        if self._rounds_done.get(moment.track[0], self._plan.rounds) == self._plan.rounds:
            return 0
        wanted = super().wish(moment)
        if wanted:
            stream = generator(self._seed, "node", *moment.track, moment.turn)
            self._numbers[moment] = stream.random((self._plan.rounds, self._plan.draws))
        return wanted

    def settle(self, upcoming: Mapping[TrackKey, int]) -> list[tuple[Moment, int]]:
        """The next round of every tree of which no trajectory runs any more.

        Args:
            upcoming: Has a key for every trajectory that is still running.

        Returns:
            Drawn nodes in order, with how often each was drawn; some stay in the ledger, for later rounds.
        """
        busy = {track[0] for track in upcoming}
        settled: list[tuple[Moment, int]] = []
        for tree, done in self._rounds_done.items():
            if tree in busy or done == self._plan.rounds:
                continue
            drawn = Counter(self._leaders(tree, done))
            self._rounds_done[tree] += 1
            for moment in sorted(drawn, key=lambda moment: moment.order):
                granted = min(drawn[moment], self.budget)
                self.budget -= granted
                settled.append((moment, granted))
            self.outranked()
        return settled

    def withdraw(self, moment: Moment) -> None:
        """Takes a node back at which branching turned out to be impossible."""
        super().withdraw(moment)
        del self._numbers[moment]

    def outranked(self) -> list[Moment]:
        """Nodes that lead in no draw to come; they leave the ledger."""
        leading = {
            moment
            for tree, done in self._rounds_done.items()
            for number in range(done, self._plan.rounds)
            for moment in self._leaders(tree, number)
        }
        losers = [moment for moment in self._open if moment not in leading]
        for moment in losers:
            self.withdraw(moment)
        return losers

    def _leaders(self, tree: int, number: int) -> list[Moment]:
        """The node that leads in each draw of a round."""
        nodes = [moment for moment in self._open if moment.track[0] == tree]
        if not nodes:
            return []
        least = np.stack([self._numbers[moment][number] for moment in nodes]).argmin(axis=0)
        return [nodes[index] for index in least]


def ledger_for(plan: GroupPlan, seed: int) -> BranchLedger:
    """The ledger that a plan's rule is kept in."""
    return (NodeLedger if plan.rule is BranchRule.RANDOM_NODES else BranchLedger)(plan, seed)
