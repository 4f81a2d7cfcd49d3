"""Signs that a run goes wrong, said once when they appear instead of found in the curves a day later."""

from collections.abc import Mapping

_PATIENCE = 5
"""Updates in a row before a sign is believed."""


class Alarms:
    """Watches the metrics of every update.

    Each condition speaks when it has held for five updates in a row, and again only after it has gone away.
    """

    def __init__(self) -> None:
        self._streaks: dict[str, int] = {}
        self._first_entropy: float | None = None
        self._used_tools = False

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """The warnings that this update gives rise to.

        Args:
            metrics: Needs "frac_reward_zero_std", "entropy", "tool_calls", "success", "invalid_episodes", "episodes",
                "failed_forks", "branches".
        """
        if self._first_entropy is None:
            self._first_entropy = metrics["entropy"]
        self._used_tools |= metrics["tool_calls"] > 0.05
        solved = metrics["success"] >= 0.99
        return [
            message
            for name, holds, message in (
                (
                    "equal rewards",
                    metrics["frac_reward_zero_std"] >= 1.0 and not solved,
                    f"All episodes of every group got the same reward for {_PATIENCE} updates: nothing is learned. "
                    "Use tasks that are sometimes solved, larger groups, or a reward with more steps.",
                ),
                (
                    "entropy",
                    metrics["entropy"] < 0.05 * self._first_entropy and not solved,
                    f"Entropy has fallen below 5 % of its start ({metrics['entropy']:.2g} nats): the policy no longer "
                    "explores. Lower the learning rate, or resume from an earlier checkpoint.",
                ),
                (
                    "tool use",
                    self._used_tools and metrics["tool_calls"] < 0.01,
                    "The policy has stopped calling tools. Check that the reward does not favor guessing.",
                ),
                (
                    "invalid episodes",
                    metrics["invalid_episodes"] > 0.1 * (metrics["episodes"] + metrics["invalid_episodes"]),
                    "More than a tenth of the episodes are invalid because infrastructure failed; see trees.jsonl.",
                ),
                (
                    "failed forks",
                    metrics["failed_forks"] > 0 and metrics["branches"] == 0.0,
                    "No trajectory could be branched, because tools gave other results when their calls were repeated. "
                    "Give them a fork() of their own, or use a recipe without branching.",
                ),
            )
            if self._lasts(name, holds)
        ]

    def _lasts(self, name: str, holds: bool) -> bool:
        self._streaks[name] = self._streaks.get(name, 0) + 1 if holds else 0
        return self._streaks[name] == _PATIENCE
