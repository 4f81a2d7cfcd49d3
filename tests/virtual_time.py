"""Event loops whose timers ring at once: hours of waiting pass in no time, and a slow machine misses no deadline."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Clock(selectors.SelectSelector):
    """Goes on to the next timer instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "everybody waits for somebody else"
        if not ready and timeout is not None:
            self.now += timeout
        return ready


def run_in_virtual_time(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine in a loop whose clock starts at 0, and moves when there is nothing else to do."""
    clock = _Clock()

    def new_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(clock)
        loop.time = lambda: clock.now  # type: ignore[method-assign]
        return loop

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)
