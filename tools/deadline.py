"""A wall-clock limit for code that cannot be trusted to return."""

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, overload

from agentrl.errors import InfrastructureError

T = TypeVar("T")


class DeadlineExceededError(Exception):
    """The work did not finish in time; if it was not async, it may still be running."""


@overload
def run_with_deadline(work: Callable[[], Coroutine[Any, Any, T]], deadline_s: float) -> T: ...
@overload
def run_with_deadline(work: Callable[[], T | Awaitable[T]], deadline_s: float) -> T: ...
def run_with_deadline(work: Callable[[], Any], deadline_s: float) -> Any:
    """Runs work in a daemon thread of its own and waits for it.

    Python cannot stop a thread. When time is up an async function is cancelled at its next `await`; a sync one is
    abandoned: it goes on, nobody looks at its result, and it does not keep the process alive.

    Args:
        work: What to run; an awaitable that it returns is awaited in an event loop of that thread.
        deadline_s: Limit in seconds.

    Raises:
        DeadlineExceededError: Time is up.
        InfrastructureError: No thread could be started.
        BaseException: Whatever the work raised.
    """
    job = _Job(work, deadline_s)
    try:
        threading.Thread(target=job.run, name="agentrl-tool", daemon=True).start()
    except RuntimeError as error:
        raise InfrastructureError(f"No thread can be started for a tool call: {error}") from error
    if not job.done.wait(deadline_s):
        raise DeadlineExceededError
    return job.result()


class _Job:
    """One run of the work, and its outcome once `done` is set."""

    def __init__(self, work: Callable[[], Any], deadline_s: float) -> None:
        self.done = threading.Event()
        self._work = work
        self._ends_at = time.monotonic() + deadline_s
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            outcome = self._work()
            self._value = asyncio.run(self._awaited(outcome)) if inspect.isawaitable(outcome) else outcome
        except BaseException as error:  # SystemExit too: a tool must not end its thread without an answer
            self._error = error
        finally:
            self.done.set()

    async def _awaited(self, awaitable: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._ends_at - time.monotonic()) as scope:
                return await awaitable
        except TimeoutError:
            if scope.expired():
                raise DeadlineExceededError from None
            raise  # the tool's own, from a socket for instance

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value
