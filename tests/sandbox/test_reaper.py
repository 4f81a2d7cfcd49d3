"""Sessions that nobody closes: the collector finds them in any thread, at any time."""

import gc
import subprocess
import sys
import threading

import pytest
from session_checks import GENEROUS
from test_session_end import wait_until

from agentrl.sandbox import UnsafeSubprocess, WarmPool
from agentrl.sandbox.reaper import end_later, ensure_reaper
from agentrl.sandbox.unsafe_subprocess import _SubprocessLink


def test_a_collection_never_waits_for_a_lock_of_the_thread_it_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    """As that of the user ids, or of the pool of connections to an engine."""
    acquired: list[bool] = []
    close = _SubprocessLink.close

    def close_under_lock(link: _SubprocessLink) -> None:
        if link in links:  # and not one that an earlier test has left to the collector
            acquired.append(lock.acquire(timeout=60))
            if acquired[-1]:
                lock.release()
        close(link)

    monkeypatch.setattr(_SubprocessLink, "close", close_under_lock)
    session = UnsafeSubprocess().open(limits=GENEROUS)
    home = UnsafeSubprocess().open_home(GENEROUS)  # as one that waits in a pool which is dropped
    links = [session.home._link, home._link]
    with lock:
        del session, home
        gc.collect()
    assert wait_until(lambda: len(acquired) == 2, 180.0)
    assert acquired == [True, True]


def test_closing_by_hand_ends_at_once_in_the_same_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    close = _SubprocessLink.close

    def note(link: _SubprocessLink) -> None:
        if link is own:
            threads.append(threading.current_thread())
        close(link)

    monkeypatch.setattr(_SubprocessLink, "close", note)
    session = UnsafeSubprocess().open(limits=GENEROUS)
    own = session.home._link
    session.close()
    session.close()
    del session
    gc.collect()
    assert threads == [threading.current_thread()]


def test_an_end_that_fails_is_shown_and_the_next_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[BaseException] = []
    done = threading.Event()
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: shown.append(error))
    ensure_reaper()
    error = ValueError("no")

    def fail() -> None:
        raise error

    end_later(fail)
    end_later(done.set)
    assert done.wait(60)
    assert shown == [error]


@pytest.mark.parametrize(
    "first", ["", "import weakref\nfor kind in (int,): weakref.finalize(type('T', (), {}), id, 1)\n"]
)
def test_the_exit_of_the_host_waits_for_all_ends(first: str) -> None:
    """Also of what was dropped shortly before; in both orders of the exits of `weakref` and of the reaper."""
    program = (
        first + "import time\n"
        "from agentrl.sandbox import Limits, UnsafeSubprocess\n"
        "from agentrl.sandbox.unsafe_subprocess import _SubprocessLink\n"
        "close = _SubprocessLink.close\n"
        "def slow(link):\n    time.sleep(0.3)\n    close(link)\n    print(link._process.pid, flush=True)\n"
        "_SubprocessLink.close = slow\n"
        "sessions = [UnsafeSubprocess().open(limits=Limits()) for _ in range(3)]\n"
        "del sessions[1:]\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stderr == ""
    assert len(set(ended.stdout.split())) == 3


def test_a_dropped_pool_ends_its_sandboxes() -> None:
    def fill() -> "subprocess.Popen[bytes]":
        pool = WarmPool(UnsafeSubprocess(), num_ready=1)
        pool.open(limits=GENEROUS).close()
        assert wait_until(lambda: pool.count_ready(GENEROUS) == 1)
        link = pool._ready[GENEROUS][0]._link
        assert isinstance(link, _SubprocessLink)
        return link._process

    process = fill()
    gc.collect()
    assert wait_until(lambda: process.returncode is not None)
