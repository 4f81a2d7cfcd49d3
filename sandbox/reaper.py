"""Ends what the garbage collector finds, in a thread of its own.

The collector runs in any thread at any time, also in one that holds a lock which ending a sandbox needs, be it ours or
one of an engine's client. What it finds is therefore only put into a queue; what is closed by hand ends at once.
"""

import atexit
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from agentrl.errors import InfrastructureError
from agentrl.forking import fresh_after_fork

_Task = Callable[[], object]


class _Reaper:
    """The one of this process."""

    def __init__(self) -> None:
        self._is_exiting = False
        self.after_fork()
        fresh_after_fork(self, type(self).after_fork)
        atexit.register(self._finish)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def ensure(self) -> None:
        with self._lock:
            if self._thread is not None or self._is_exiting:
                return
            thread = threading.Thread(target=_work, args=(self._queue,), name="agentrl-sandbox-reaper", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise InfrastructureError(f"No thread can be started for a sandbox: {error}.") from error
            self._thread = thread

    def hand_over(self, task: _Task) -> None:
        if self._is_exiting:
            task()
        else:
            self._queue.put(task)  # safe in a collection that has interrupted this very call

    def _finish(self) -> None:
        """Waits for the end of what was handed over, whichever of this module's and `weakref`'s exits comes first."""
        self._is_exiting = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
        try:
            while True:
                _do(self._queue.get_nowait())
        except Empty:
            pass


def ensure_reaper() -> None:
    """Starts this process's reaper unless it has one: a thread cannot be started safely by the collector.

    Raises:
        InfrastructureError: The system gives no thread.
    """
    _reaper.ensure()


def end_later(task: _Task) -> None:
    """Has `task` called by the reaper; at the exit of the process at once. What `weakref.finalize` may call.

    Takes no lock, starts nothing and does not wait.
    """
    _reaper.hand_over(task)


def _work(queue: "SimpleQueue[_Task | None]") -> None:
    while _do(queue.get()):
        pass


def _do(task: _Task | None) -> bool:
    """Does a task; False for None. What it raises is shown and ends nothing else, as `weakref.finalize` has it."""
    if task is None:
        return False
    try:
        task()
    except Exception:
        sys.excepthook(*sys.exc_info())
    return True


_reaper = _Reaper()
