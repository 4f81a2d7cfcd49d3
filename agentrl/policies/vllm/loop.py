"""An event loop in a daemon thread of its own, for threads that do not have one."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from agentrl.errors import PolicyError

T = TypeVar("T")

_LOOK_S = 0.5
_END_S = 10.0


class LoopThread:
    """Runs coroutines for other threads, none of which waits for a loop that is not there any more.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def is_mine(self) -> bool:
        """Whether this is the process that made it; a copy of that process has no such thread."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Does nothing while it runs.

        Raises:
            PolicyError: It does not, or this process is a copy of the one that made it.
        """
        if not self.is_mine:
            raise PolicyError(
                "This process was forked from the one that opened the vLLM policy, and cannot use its engines. Open a "
                "policy here, or start processes with the method 'spawn'."
            )
        if not self._thread.is_alive():
            raise PolicyError("The thread that talks to vLLM has ended: the policy was closed, or it crashed.")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine and waits for it.

        Raises:
            PolicyError: The loop is not there, or goes away.
            BaseException: Whatever the work raised.
        """
        try:
            self.check()
        except PolicyError:
            work.close()
            raise
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                try:
                    return future.result(_LOOK_S)
                except TimeoutError:
                    if future.done():  # in the meantime, or the time-out is the work's own
                        return future.result()
                    self.check()
        finally:
            future.cancel()  # without effect on what has ended

    def post(self, callback: Callable[..., object], *arguments: object) -> None:
        """Calls a function in the loop, soon, in the order of posting.

        Raises:
            PolicyError: The loop is not there.
        """
        self.check()
        self._loop.call_soon_threadsafe(callback, *arguments)

    def stop(self) -> None:
        """Cancels what runs there and ends the thread. Safe to call twice."""
        if not self.is_mine or not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_S)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(_cancel(asyncio.all_tasks(self._loop)))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
