"""The one event loop in which all MCP connections of this process live, in a daemon thread of its own.

MCP sessions must be entered and left in the same task, and are shared by threads that come and go with every call.
A forked process has no such thread: it starts one of its own and makes its own connections when it needs them.
"""

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any, TypeVar

from agentrl.errors import InfrastructureError
from agentrl.forking import fresh_after_fork

T = TypeVar("T")

_EXIT_S = 15.0
"""Longest time that closing all connections may hold up the end of the process."""

_of_parents: list[object] = []
_at_exit: list[Callable[[], Coroutine[Any, Any, None]]] = []


class _Loop:
    """The one of this process."""

    def __init__(self) -> None:
        self._begin()
        fresh_after_fork(self, _Loop._forget)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self.started: asyncio.AbstractEventLoop | None = None

    def _forget(self) -> None:
        leave_to_parent(self.started)
        self._begin()

    def running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self.started is None:
                self.started = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self.started,), name="agentrl-mcp", daemon=True).start()
            return self.started


def run(work: Coroutine[Any, Any, T], limit_s: float) -> T:
    """Runs a coroutine in the loop and waits for it; called from any other thread.

    Args:
        work: What to run.
        limit_s: A safety net: the work has limits of its own, which come first.

    Raises:
        InfrastructureError: It took longer.
        BaseException: Whatever the work raised.
    """
    future = asyncio.run_coroutine_threadsafe(work, _loop.running())
    try:
        return future.result(limit_s)
    except FutureTimeoutError:
        if future.done():
            raise  # the work's own
        raise InfrastructureError(f"An MCP connection did not react within {limit_s:g} s.") from None
    finally:
        future.cancel()  # without effect on what has ended


def at_exit(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Has something closed, in the loop, when this process ends."""
    _at_exit.append(close)


def leave_to_parent(inherited: object) -> None:
    """Keeps, in a forked process, what it must neither use nor finalize."""
    _of_parents.append(inherited)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


def _close() -> None:
    if _loop.started is not None:
        for close in _at_exit:
            with suppress(InfrastructureError):  # the servers see the end of their input in a moment
                run(close(), _EXIT_S)


_loop = _Loop()
atexit.register(_close)
