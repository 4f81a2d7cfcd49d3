"""Places at engines: which request goes where, and which wait."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.policies.core import SequenceId
from agentrl.policies.vllm.engine import Engine


@dataclass(slots=True, eq=False)
class Seat:
    """An engine, and what is known of it."""

    engine: Engine
    is_out: bool = False
    """Whether it gets no requests: it was lost, or its weights are not the current ones."""
    has_ended: bool = False
    """Whether it will never come back."""
    num_taken: int = 0
    calls: set[asyncio.Future[Any]] = field(default_factory=set)
    """Requests under way there."""
    last_error: str = ""

    @property
    def room(self) -> int:
        """Requests that it can take now."""
        return 0 if self.is_out else self.engine.max_in_flight - self.num_taken


class Seating:
    """Gives places to requests, first come first served.

    A sequence goes to the engine it was at before, or its parent, which has its tokens in the prefix cache, as long as
    there is room; otherwise to the one that has most room for what it can do.

    Args:
        engines: At least one.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.seats = [Seat(engine) for engine in engines]
        self._homes: dict[SequenceId, Seat] = {}
        self._parents: dict[SequenceId, SequenceId] = {}
        self._waiting: deque[tuple[SequenceId | None, asyncio.Future[Seat]]] = deque()

    async def take(self, sequence: SequenceId | None) -> Seat:
        """Waits for a place, to be given back with `leave`; None is a sequence without a history."""
        place: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self._waiting.append((sequence, place))
        self.admit()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave(place.result())  # it came at the moment in which nobody wanted it any more
            raise

    def leave(self, seat: Seat) -> None:
        """Gives a place back."""
        seat.num_taken -= 1
        self.admit()

    def admit(self) -> None:
        """Gives places to those who wait, as far as there are any."""
        while self._waiting:
            sequence, place = self._waiting[0]
            if place.done():
                self._waiting.popleft()
                continue
            seat = self._best(sequence)
            if seat is None:
                return
            self._waiting.popleft()
            seat.num_taken += 1
            if sequence is not None:
                self._homes[sequence] = seat
            place.set_result(seat)

    def give_up(self, error: Exception) -> None:
        """Ends all waiting."""
        while self._waiting:
            _, place = self._waiting.popleft()
            if not place.done():
                place.set_exception(error)

    def fork(self, parent: SequenceId, child: SequenceId) -> None:
        """Remembers where a sequence comes from; where the parent is may turn out later."""
        if parent in self._homes:
            self._homes[child] = self._homes[parent]
        else:
            self._parents[child] = parent

    def forget(self, sequence: SequenceId) -> None:
        """Forgets a sequence."""
        self._homes.pop(sequence, None)
        self._parents.pop(sequence, None)

    def _best(self, sequence: SequenceId | None) -> Seat | None:
        home = self._home(sequence)
        if home is not None and home.room > 0:
            return home
        free = [seat for seat in self.seats if seat.room > 0]
        return max(free, key=lambda seat: (seat.room / seat.engine.max_in_flight, seat.room), default=None)

    def _home(self, sequence: SequenceId | None) -> Seat | None:
        while sequence is not None:
            if sequence in self._homes:
                return self._homes[sequence]
            sequence = self._parents.get(sequence)
        return None
