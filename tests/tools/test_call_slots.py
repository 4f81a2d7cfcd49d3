"""How many calls of a tool run at a time, and what happens when they hang. No test waits for a clock to be right."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.messages import ToolCall
from agentrl.tools import StatefulTool, Toolbox, call_slots, tool
from agentrl.tools.call_slots import MAX_ABANDONED, CallSlots, slots_of
from agentrl.tools.core import Tool, ToolStatus
from agentrl.tools.deadline import DeadlineExceededError, run_with_deadline

LONG_S = 60.0
"""Never reached: every test below would fail or hang without the behaviour it names."""


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets everything that hangs go on, at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


class Gauge:
    """Work that counts how many of it run at a time."""

    def __init__(self) -> None:
        self.running = self.peak = 0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
        time.sleep(0.002)  # so that calls would overlap if they could
        with self._lock:
            self.running -= 1
        return "done"


@pytest.mark.parametrize("limit", [1, 3])
def test_at_most_so_many_run_at_a_time(limit: int) -> None:
    gauge, slots = Gauge(), CallSlots("gauge", limit)
    with ThreadPoolExecutor(12) as threads:
        results = list(threads.map(lambda _: slots.run(gauge, LONG_S), range(40)))
    assert results == ["done"] * 40
    assert gauge.peak <= limit


def test_all_episodes_and_forks_share_the_slots_of_a_tool() -> None:
    gauge = Gauge()

    class Counted(StatefulTool):
        """Counts."""

        max_concurrency = 2

        def run(self) -> str:
            """Counts."""
            return gauge()

    class Other(Counted):
        name = "other"

    first, second = Toolbox([Counted()]), Toolbox([Counted()])
    boxes = [first, second, first.fork(), second.fork()]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: boxes[i % 4].call(ToolCall("counted")), range(24)))
    assert gauge.peak <= 2
    assert slots_of(Counted()) is slots_of(Counted().open()) is not slots_of(Other())


def test_functions_of_one_name_are_different_tools() -> None:
    def made(answer: str) -> Tool:
        @tool(name="answer", max_concurrency=1)
        def ask() -> str:
            """Answers."""
            return answer

        return ask

    @tool(name="answer", max_concurrency=1)
    def ask() -> str:
        """Answers otherwise."""
        return ""

    assert slots_of(made("a")) is slots_of(made("b")), "one function in the source, however often it is made a tool"
    assert slots_of(made("a")) is not slots_of(ask)


def waiting(slots: CallSlots) -> int:
    return len(slots._changed._waiters)  # type: ignore[attr-defined]


def eventually(condition: Callable[[], Any]) -> None:
    ends_at = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.001)


def test_the_deadline_begins_when_the_wait_is_over(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[float | None] = []

    def run(work: Callable[[], Any], deadline_s: float | None, **options: Any) -> Any:
        begun.append(deadline_s)
        return run_with_deadline(work, deadline_s, **options)

    monkeypatch.setattr(call_slots, "run_with_deadline", run)
    slots = CallSlots("one", 1)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(slots.run, lambda: release.wait(LONG_S), LONG_S)
        eventually(lambda: len(slots._running) == 1)
        second = threads.submit(slots.run, lambda: "in time", LONG_S + 1)
        eventually(lambda: waiting(slots) == 1)
        assert begun == [LONG_S]
        release.set()
        assert second.result(LONG_S) == "in time"
        assert first.result(LONG_S)
    assert begun == [LONG_S, LONG_S + 1]


class TestHangingCalls:
    def test_an_abandoned_call_keeps_its_slot_until_it_ends(self, release: threading.Event) -> None:
        slots = CallSlots("slow", 2)
        with pytest.raises(DeadlineExceededError):
            slots.run(lambda: release.wait(LONG_S), 0.01)
        gauge = Gauge()
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda _: slots.run(gauge, LONG_S), range(12)))
        assert gauge.peak == 1
        release.set()
        eventually(lambda: not slots._running and not slots._abandoned)

    def test_when_they_hold_every_slot_the_others_are_not_held_up_for_ever(self, release: threading.Event) -> None:
        slots = CallSlots("stuck", 2)
        for _ in range(2):
            with pytest.raises(DeadlineExceededError):
                slots.run(lambda: release.wait(LONG_S), 0.01)
        message = "Tool 'stuck' hangs: 2 calls of max_concurrency=2 are still running although their deadline has"
        for _ in range(2):
            with pytest.raises(InfrastructureError, match=message):
                slots.run(lambda: "never", 0.01)
        release.set()
        eventually(lambda: not slots._running)
        assert slots.run(lambda: "again", LONG_S) == "again"

    def test_one_that_ends_in_the_time_of_grace_makes_room(self, release: threading.Event) -> None:
        slots = CallSlots("late", 1)
        with pytest.raises(DeadlineExceededError):
            slots.run(lambda: release.wait(LONG_S), 0.01)
        with ThreadPoolExecutor(1) as threads:
            next_one = threads.submit(slots.run, lambda: "made it", LONG_S)
            eventually(lambda: waiting(slots) == 1)
            release.set()
            assert next_one.result(LONG_S) == "made it"

    def test_the_number_of_abandoned_threads_is_bounded(self, release: threading.Event) -> None:
        slots = CallSlots("endless", None)
        before = threading.active_count()
        for _ in range(MAX_ABANDONED):
            with pytest.raises(DeadlineExceededError):
                slots.run(lambda: release.wait(LONG_S), 0.0001)
        for _ in range(10):
            with pytest.raises(InfrastructureError, match=r"Tool 'endless' hangs: 64 calls of all episodes"):
                slots.run(lambda: "never", LONG_S)
        assert threading.active_count() <= before + MAX_ABANDONED
        assert CallSlots("another", None).run(lambda: "works", LONG_S) == "works"
        release.set()
        eventually(lambda: not slots._abandoned)
        assert slots.run(lambda: "again", LONG_S) == "again"

    def test_an_async_call_gives_its_slot_back_when_it_is_cancelled(self) -> None:
        async def hang() -> None:
            await asyncio.sleep(LONG_S)

        slots = CallSlots("async", 1)
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                slots.run(hang, 0.05)
            eventually(lambda: not slots._running and not slots._abandoned)

    def test_a_thread_that_cannot_be_started_takes_no_slot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slots = CallSlots("thread", 1)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
            with pytest.raises(InfrastructureError, match="no thread"):
                slots.run(lambda: "", LONG_S)
        assert slots.run(lambda: "now", LONG_S) == "now"


def test_a_tool_without_a_deadline_is_waited_for(release: threading.Event) -> None:
    @tool(deadline_s=None)
    def patient() -> str:
        """Keeps its own limits."""
        release.wait(LONG_S)
        return "done"

    @tool(deadline_s=None)
    async def patient_async() -> str:
        """Keeps its own limits."""
        await asyncio.sleep(0)
        return "done"

    toolbox = Toolbox([patient, patient_async])
    threading.Timer(0.05, release.set).start()
    results = [toolbox.call(ToolCall(name)) for name in ("patient", "patient_async")]
    assert [(result.text, result.status) for result in results] == [("done", ToolStatus.OK)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_concurrency": 0}, "max_concurrency of tool 'f' must be at least 1, got 0"),
        ({"max_concurrency": 2, "inline": True}, "is inline, so its calls return at once and nothing waits"),
        ({"deadline_s": 0}, "deadline_s of tool 'f' must be positive and finite, or None"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    def f() -> None:
        """Does nothing."""

    with pytest.raises(ConfigError, match=message):
        tool(**options)(f)


HANGS = """
import asyncio, threading
from agentrl.messages import ToolCall
from agentrl.tools import Toolbox, tool

@tool(deadline_s=0.05)
def hang() -> None:
    "Hangs."
    threading.Event().wait()

@tool(deadline_s=0.05)
async def hang_in_a_helper() -> None:
    "Hangs where asyncio.to_thread put it."
    await asyncio.to_thread(threading.Event().wait)

toolbox = Toolbox([hang, hang_in_a_helper])
print([str(toolbox.call(ToolCall(name)).status) for name in ("hang", "hang_in_a_helper")])
"""


def test_hung_calls_do_not_hold_up_the_end_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=LONG_S, check=True)
    assert done.stdout == "['timeout', 'timeout']\n"
    assert done.stderr == ""
