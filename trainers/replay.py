"""Training again on the policy's own earlier episodes, for algorithms whose ratio corrects for their age."""

import json
from collections import deque
from dataclasses import replace
from typing import Any

from agentrl.seeding import generator
from agentrl.trainers.rollouts import EpisodeSource, Harvest
from agentrl.trajectory import Tree


class ReplayedRollouts(EpisodeSource):
    """Adds groups of earlier updates to fresh ones.

    Their tokens keep the log-probabilities they were sampled with, so the ratio is that of the policy of today to the
    one that sampled them. Groups stay whole: advantages compare episodes of one policy.

    Args:
        fresh: Where new episodes come from.
        groups: Earlier groups in every update, as soon as there are so many.
        max_age: Updates after which a group is forgotten.
    """

    def __init__(self, fresh: EpisodeSource, *, groups: int, max_age: int) -> None:
        self._fresh = fresh
        self._groups = groups
        self._earlier: deque[list[Tree]] = deque(maxlen=max_age)

    @property
    def position(self) -> int:
        """Tasks drawn so far."""
        return self._fresh.position

    @position.setter
    def position(self, position: int) -> None:
        self._fresh.position = position

    def sample(self, seed: int) -> Harvest:
        """Fresh groups, and some earlier ones drawn without replacement."""
        harvest = self._fresh.sample(seed)
        aged = [(age, tree) for age, trees in enumerate(reversed(self._earlier), 1) for tree in trees]
        chosen = generator(seed, "replay").permutation(len(aged))[: self._groups]
        replayed = [aged[i] for i in sorted(chosen.tolist())]
        self._earlier.append(harvest.kept)
        metrics = {
            "replayed_groups": float(len(replayed)),
            "replay_age": sum(age for age, _ in replayed) / max(1, len(replayed)),
        }
        return replace(
            harvest, kept=[*harvest.kept, *(tree for _, tree in replayed)], metrics={**harvest.metrics, **metrics}
        )

    def state_dict(self) -> dict[str, Any]:
        """The remembered groups as JSON, which keeps every digit, and the inner source's state."""
        earlier = [[tree.to_json() for tree in trees] for trees in self._earlier]
        return {"earlier": json.dumps(earlier), "fresh": self._fresh.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._earlier.clear()
        self._earlier.extend([Tree.from_json(tree) for tree in trees] for trees in json.loads(state["earlier"]))
        self._fresh.load_state_dict(state["fresh"])
