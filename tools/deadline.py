"""A wall-clock limit for code that cannot be trusted to return."""

import asyncio
import concurrent.futures as cf
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, overload

from agentrl.errors import InfrastructureError

T = TypeVar("T")
P = ParamSpec("P")


class DeadlineExceededError(Exception):
    """The work did not finish in time; if it was not async, it may still be running."""


@overload
def run_with_deadline(
    work: Callable[[], Coroutine[Any, Any, T]], deadline_s: float | None, *, on_end: Callable[[], None] | None = None
) -> T: ...
@overload
def run_with_deadline(
    work: Callable[[], T | Awaitable[T]], deadline_s: float | None, *, on_end: Callable[[], None] | None = None
) -> T: ...
def run_with_deadline(
    work: Callable[[], Any], deadline_s: float | None, *, on_end: Callable[[], None] | None = None
) -> Any:
    """Runs work in a daemon thread of its own and waits for it.

    Python cannot stop a thread. When time is up an async function is cancelled at its next `await`; a sync one, also
    one that an async function runs by `asyncio.to_thread`, is abandoned: it goes on, nobody looks at its result, and it
    does not keep the process alive.

    Args:
        work: What to run; an awaitable that it returns is awaited in an event loop of that thread.
        deadline_s: Limit in seconds; None waits as long as it takes.
        on_end: Called once when nothing of the work runs any more, be it long after the deadline.

    Raises:
        DeadlineExceededError: Time is up.
        InfrastructureError: No thread could be started.
        BaseException: Whatever the work raised.
    """
    job = _Job(work, deadline_s, on_end or _nothing)
    try:
        threading.Thread(target=job.run, name="agentrl-tool", daemon=True).start()
    except RuntimeError as error:
        job.on_end()
        raise InfrastructureError(f"No thread can be started for a tool call: {error}") from error
    if not job.done.wait(deadline_s):
        raise DeadlineExceededError
    return job.result()


def _nothing() -> None:
    return None


class _Job:
    """One run of the work, and its outcome once `done` is set."""

    def __init__(self, work: Callable[[], Any], deadline_s: float | None, on_end: Callable[[], None]) -> None:
        self.done = threading.Event()
        self.on_end = on_end
        self._work = work
        self._ends_at = None if deadline_s is None else time.monotonic() + deadline_s
        self._helpers = _DaemonThreads()
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
            self._helpers.wait()
            self.on_end()

    async def _awaited(self, awaitable: Awaitable[Any]) -> Any:
        asyncio.get_running_loop().set_default_executor(self._helpers)
        remaining = None if self._ends_at is None else self._ends_at - time.monotonic()
        try:
            async with asyncio.timeout(remaining) as scope:
                return await awaitable
        except TimeoutError:
            if scope.expired():
                raise DeadlineExceededError from None
            raise  # the tool's own, from a socket for instance

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class _DaemonThreads(cf.ThreadPoolExecutor):
    """What `asyncio.to_thread` uses here: the standard one's threads are joined when the process ends, hung or not."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # of the base class, which never starts its threads here
        self._started: list[threading.Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> cf.Future[T]:
        """Runs a function in a daemon thread of its own."""
        future: cf.Future[T] = cf.Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=run, name="agentrl-tool-helper", daemon=True)
        thread.start()
        self._started.append(thread)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Does nothing: the event loop waits here when it closes, and must not."""

    def wait(self) -> None:
        """Waits for all of them."""
        for thread in self._started:
            thread.join()
