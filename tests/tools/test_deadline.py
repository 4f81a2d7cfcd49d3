"""Work that finishes is returned, work that does not is cancelled or abandoned."""

import asyncio
import threading

import pytest

from agentrl.errors import InfrastructureError
from agentrl.tools.deadline import DeadlineExceededError, run_with_deadline

LONG_S = 60.0
"""Never reached: every test below would fail or hang without the behaviour it names."""


def test_results_of_sync_and_async_work() -> None:
    async def later() -> str:
        await asyncio.sleep(0)
        return "later"

    assert run_with_deadline(lambda: "now", LONG_S) == "now"
    assert run_with_deadline(later, LONG_S) == "later"


def test_it_runs_in_a_daemon_thread_that_cannot_keep_the_process_alive() -> None:
    thread = run_with_deadline(threading.current_thread, LONG_S)
    assert thread is not threading.main_thread()
    assert thread.daemon


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), TimeoutError("the tool's own"), KeyError("k")])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_work_raises_is_raised(error: BaseException, is_async: bool) -> None:
    def fail() -> str:
        raise error

    async def fail_later() -> str:
        raise error

    with pytest.raises(type(error)) as caught:
        run_with_deadline(fail_later if is_async else fail, LONG_S)
    assert caught.value is error


def test_sync_work_is_abandoned() -> None:
    release, finished = threading.Event(), threading.Event()

    def hang() -> str:
        release.wait(LONG_S)
        finished.set()
        return "too late"

    with pytest.raises(DeadlineExceededError):
        run_with_deadline(hang, 0.02)
    assert not finished.is_set()
    release.set()
    assert finished.wait(LONG_S), "the thread itself cannot be stopped, which is why a stateful tool is lost"


def test_async_work_is_cancelled() -> None:
    cancelled = threading.Event()

    async def hang() -> str:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "too late"

    with pytest.raises(DeadlineExceededError):
        run_with_deadline(hang, 0.02)
    assert cancelled.wait(LONG_S)


def test_no_thread_left_is_a_failure_of_the_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(InfrastructureError, match="can't start new thread"):
        run_with_deadline(lambda: "", LONG_S)
