"""A bound on how many threads do something at a time, of which a forked copy of the process has its own."""

import contextlib
import threading
from collections.abc import Iterator

from agentrl.forking import fresh_after_fork


class Slots:
    """Lets so many threads at a time do something; a forked copy of the process has as many of its own.

    Args:
        num: How many.

    Example:
        >>> with Slots(2).taken():
        ...     pass
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self.after_fork()
        fresh_after_fork(self, Slots.after_fork)

    def after_fork(self) -> None:
        """All are free."""
        self._free = threading.BoundedSemaphore(self.num)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for a slot and holds it."""
        with self._free:
            yield
