"""Completions with a count of them: they cost what other episodes cost, and some may fail."""

from collections.abc import Sequence

from agentrl.rollout.continuation import Prefix
from agentrl.trainers.reward_models.core import Completer
from agentrl.trajectory import Leaf


class CountedCompletions(Completer):
    """Passes completions on and counts them.

    Args:
        complete: Plays them.
    """

    def __init__(self, complete: Completer) -> None:
        self._complete = complete
        self._asked = 0
        self._valid = 0

    def __call__(self, prefixes: Sequence[Prefix], num_completions: int, *, seed: int) -> list[list[Leaf]]:
        """The valid leaves of each prefix."""
        completed = self._complete(prefixes, num_completions, seed=seed)
        self._asked += len(prefixes) * num_completions
        self._valid += sum(map(len, completed))
        return completed

    def metrics(self) -> dict[str, float]:
        """What there is to say since this was last asked.

        Returns:
            "completions", all that were begun, and "completions_invalid", those without a result; nothing if there
            were none.
        """
        asked, valid, self._asked, self._valid = self._asked, self._valid, 0, 0
        return {"completions": float(asked), "completions_invalid": float(asked - valid)} if asked else {}
