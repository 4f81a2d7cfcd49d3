"""The episodes of later updates, sampled while one is trained on: the asynchronous loop with bounded staleness."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from agentrl.errors import PolicyError
from agentrl.trainers.rollouts import Harvest
from agentrl.trajectory import Tree

_END_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The episodes of one update, and what a run notes of their sampling."""

    harvest: Harvest
    position: int
    """Tasks drawn when it was complete."""
    discarded: int
    """Episodes that a resumed run must not play again."""
    seconds: float
    """Sampling took."""
    engine: dict[str, float] = field(default_factory=dict)
    """What the engine did for them."""


class SampledAhead:
    """Samples batches in order in a thread of its own, at most so many updates ahead of the weights.

    The batch of update n begins when the weights of update n - max_staleness have been published, so that no token of
    it is older; those that are published while it is being sampled make the rest of it younger.

    Args:
        sample: Samples the batch of an update; called from the thread.
        first: Number of the first update.
        end: Number after the last one.
        max_staleness: At least 1.
    """

    def __init__(self, sample: Callable[[int], Batch], *, first: int, end: int, max_staleness: int) -> None:
        self._sample = sample
        self._end = end
        self._max_staleness = max_staleness
        self._version = first
        self._changed = threading.Condition()
        """Of all that follows."""
        self._ready: dict[int, Batch] = {}
        self._error: BaseException | None = None
        self._is_paused = self._is_closed = self._is_busy = False
        self._thread = threading.Thread(target=self._run, args=(first,), name="agentrl-sampler", daemon=True)
        self._thread.start()

    def take(self, number: int) -> Batch:
        """Waits for the batch of an update; each is taken once, in order.

        Raises:
            Exception: What its sampling raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: number in self._ready or self._error is not None)
            if number not in self._ready and self._error is not None:
                raise self._error
            return self._ready.pop(number)

    def published(self, version: int) -> None:
        """The engine has the weights after so many updates."""
        with self._changed:
            self._version = version
            self._changed.notify_all()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No episode is sampled inside the `with` block; a batch under way is completed first."""
        with self._changed:
            self._is_paused = True
            self._changed.wait_for(lambda: not self._is_busy)
        try:
            yield
        finally:
            with self._changed:
                self._is_paused = False
                self._changed.notify_all()

    def close(self) -> None:
        """Begins no further batch, and waits for the end of one under way."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(_END_S)

    def _run(self, first: int) -> None:
        for number in range(first, self._end):
            with self._changed:
                self._changed.wait_for(lambda number=number: self._is_closed or self._may_begin(number))  # type: ignore[misc]
                if self._is_closed:
                    return
                self._is_busy = True
            batch, error = None, None
            try:
                batch = self._sample(number)
            except BaseException as failure:
                error = failure
            with self._changed:
                self._is_busy = False
                self._error = error
                if batch is not None:
                    self._ready[number] = batch
                self._changed.notify_all()
            if error is not None:
                return

    def _may_begin(self, number: int) -> bool:
        return not self._is_paused and number - self._version <= self._max_staleness


def staleness(trees: Sequence[Tree], number: int, bound: int) -> dict[str, float]:
    """How many updates behind the weights were that sampled the episodes of update `number`: mean and largest.

    Raises:
        PolicyError: More than `bound`.
    """
    ages = [number - s.policy_version for tree in trees for s in tree.segments if any(s.action_mask)]
    if not ages:
        return {}
    if max(ages) > bound or min(ages) < 0:
        raise PolicyError(
            f"Update {number + 1} got tokens that were sampled with the weights after {number - max(ages)} to "
            f"{number - min(ages)} updates; policy.max_staleness={bound} allows {max(0, number - bound)} to {number}."
        )
    return {"staleness": sum(ages) / len(ages), "staleness_max": float(max(ages))}
