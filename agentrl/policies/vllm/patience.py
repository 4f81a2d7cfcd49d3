"""How long to wait for an engine that has many turns to sample."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Patience:
    """Time limits for silence: all that wait for an engine go on waiting as long as it answers one of them.

    A turn in a full engine may wait long for its place, which says nothing about the engine.
    """

    def __init__(self) -> None:
        self._limits: dict[asyncio.Timeout, float] = {}

    @contextlib.asynccontextmanager
    async def wait(self, seconds: float) -> AsyncIterator[None]:
        """Limits the `with` block, whose end counts as an answer unless it raised.

        Args:
            seconds: Without any answer.

        Raises:
            TimeoutError: There was no answer to anybody for so long.
        """
        async with asyncio.timeout(seconds) as limit:
            self._limits[limit] = seconds
            try:
                yield
            finally:
                del self._limits[limit]
        now = asyncio.get_running_loop().time()
        for other, allowed in self._limits.items():
            if not other.expired():
                other.reschedule(now + allowed)
