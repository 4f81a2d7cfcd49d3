"""How long to wait for an engine that has many turns to sample."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Patience:
    """A time limit for silence: all that wait for an engine go on waiting as long as it answers one of them.

    A turn in a full engine may wait long for its place, which says nothing about the engine.

    Args:
        seconds: Without any answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limits: set[asyncio.Timeout] = set()

    @contextlib.asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Limits the `with` block, whose end counts as an answer unless it raised.

        Raises:
            TimeoutError: There was no answer to anybody for so long.
        """
        async with asyncio.timeout(self._seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)
        end = asyncio.get_running_loop().time() + self._seconds
        for other in self._limits:
            if not other.expired():
                other.reschedule(end)
