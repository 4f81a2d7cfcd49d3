"""How many calls of a tool run at a time in this process, and how many of them hang."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from agentrl.errors import InfrastructureError
from agentrl.forking import fresh_after_fork
from agentrl.tools.core import Tool
from agentrl.tools.deadline import DeadlineExceededError, run_with_deadline

MAX_ABANDONED = 64
"""Calls of one tool that may go on after their deadline; each keeps a thread. More mean that the tool hangs."""


class CallSlots:
    """The calls of one tool that run now, in all episodes of this process.

    A call keeps its slot for as long as anything of it runs: what its deadline has passed, too, still uses what
    `max_concurrency` protects. Where such calls hold every slot, the others wait for one deadline longer, and then
    the tool counts as hung: its calls are infrastructure failures at once until one of those calls ends.

    Args:
        name: Of the tool.
        limit: Calls at a time; None for any number.
    """

    def __init__(self, name: str, limit: int | None) -> None:
        self._name = name
        self._limit = limit
        self._begin()
        fresh_after_fork(self, CallSlots._begin)  # the calls of the parent's threads never end in its copy

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._running: set[object] = set()
        self._abandoned: set[object] = set()
        self._stuck_since: float | None = None
        """When calls past their deadline had taken the last slot."""

    def run(self, work: Callable[[], Any], deadline_s: float | None) -> Any:
        """Waits for a slot, and then runs the work as `run_with_deadline` does.

        Raises:
            DeadlineExceededError: Time is up; waiting for the slot does not count.
            InfrastructureError: The tool hangs, or no thread could be started.
            BaseException: Whatever the work raised.
        """
        call = object()
        self._enter(call, deadline_s)
        try:
            return run_with_deadline(work, deadline_s, on_end=lambda: self._leave(call))
        except DeadlineExceededError:
            self._abandon(call)
            raise

    def _enter(self, call: object, deadline_s: float | None) -> None:
        with self._changed:
            while self._limit is not None and len(self._running) >= self._limit:
                if self._stuck_since is None or deadline_s is None:
                    self._changed.wait()
                    continue
                patience_s = self._stuck_since + deadline_s - time.monotonic()
                if patience_s <= 0:
                    raise InfrastructureError(self._hung(f"of max_concurrency={self._limit}"))
                self._changed.wait(patience_s)
            if len(self._abandoned) >= MAX_ABANDONED:
                raise InfrastructureError(self._hung("of all episodes"))
            self._running.add(call)

    def _abandon(self, call: object) -> None:
        with self._changed:
            if call not in self._running:
                return
            self._abandoned.add(call)
            if len(self._abandoned) == self._limit:
                self._stuck_since = time.monotonic()
            self._changed.notify_all()

    def _leave(self, call: object) -> None:
        with self._changed:
            self._running.discard(call)
            self._abandoned.discard(call)
            self._stuck_since = None
            self._changed.notify_all()

    def _hung(self, which: str) -> str:
        return (
            f"Tool {self._name!r} hangs: {len(self._abandoned)} calls {which} are still running although their "
            "deadline has passed, and Python cannot stop a thread. Give what it waits for a time limit of its own, or "
            "make it async."
        )


_slots: dict[Hashable, CallSlots] = {}


def slots_of(tool: Tool) -> CallSlots:
    """Those that an instance shares with all others of its kind."""
    key = (tool.kind, tool.max_concurrency)
    return _slots.get(key) or _slots.setdefault(key, CallSlots(tool.name, tool.max_concurrency))
