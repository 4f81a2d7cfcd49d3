"""A forked copy of the process does not wait for threads that only its parent has, nor use their connections."""

import gc
import os
import signal
import ssl
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from http_server import reply
from search_server import serving

from agentrl import forking, json_service
from agentrl.forking import fresh_after_fork
from agentrl.json_service import JsonService
from agentrl.tools.call_slots import CallSlots
from agentrl.tools.rate_limit import HostLimits
from agentrl.tools.single_flight import SingleFlight

LONG_S = 60
"""Never reached, but by a child that hangs."""

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def succeeds_in_a_copy(check: Callable[[], bool]) -> bool:
    """Whether a check is true in a fork of this process; a child that waits for ever is killed by the kernel."""
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LONG_S)
            code = 0 if check() else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[Callable[[], None]], object]], None]]:
    """Runs something in a thread, up to where it calls what it is given; there it stays until the test ends."""
    release = threading.Event()
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(4))
        stack.callback(release.set)

        def begin(run: Callable[[Callable[[], None]], object]) -> None:
            arrived = threading.Event()

            def hold() -> None:
                arrived.set()
                release.wait(LONG_S)

            threads.submit(run, hold)
            assert arrived.wait(LONG_S)

        yield begin


Elsewhere = Callable[[Callable[[Callable[[], None]], object]], None]


def test_things_start_afresh_in_the_child_alone_and_are_not_kept_alive() -> None:
    class Counter:
        count = 0

        def up(self) -> None:
            self.count += 1

    counters = [Counter()]
    fresh_after_fork(counters[0], Counter.up)
    assert succeeds_in_a_copy(lambda: counters[0].count == 1)
    assert succeeds_in_a_copy(lambda: succeeds_in_a_copy(lambda: counters[0].count == 2))
    assert counters[0].count == 0
    seen, before = weakref.ref(counters[0]), len(forking._resets)
    counters.clear()
    gc.collect()
    assert seen() is None
    assert len(forking._resets) < before


def test_slots_that_the_parents_threads_hold_are_free(elsewhere: Elsewhere) -> None:
    slots = CallSlots("one", 1)
    elsewhere(lambda hold: slots.run(hold, None))
    assert succeeds_in_a_copy(lambda: slots.run(lambda: "ran", LONG_S) == "ran")


def test_a_lock_that_a_parents_thread_holds_is_new(elsewhere: Elsewhere) -> None:
    slots, limits, flights = CallSlots("one", 1), HostLimits("host"), SingleFlight[int]()
    service = JsonService("http://localhost:1")

    def lock(hold: Callable[[], None]) -> None:
        with slots._changed, limits._changed, flights._lock, service._lock:
            hold()

    def use() -> bool:
        limits.hold(0.0)
        service._connected()
        return bool(slots.run(lambda: flights.run("k", lambda: 7) == 7, LONG_S))

    elsewhere(lock)
    assert succeeds_in_a_copy(use)


def test_a_call_that_forks_ends_in_both_and_keeps_the_limit() -> None:
    slots, limits, flights = CallSlots("one", 1), HostLimits("host"), SingleFlight[bool]()

    def fork() -> bool:
        with limits.turn():
            return flights.run("k", lambda: succeeds_in_a_copy(in_child))

    def in_child() -> bool:
        return not slots._running and not limits._running and not flights._flights

    assert slots.run(fork, None)
    assert not slots._running
    assert not limits._running
    assert not flights._flights


def test_turns_that_the_parents_threads_have_are_free_and_the_limits_stay(elsewhere: Elsewhere) -> None:
    limits = HostLimits("host")
    limits.set(1000.0, 2)

    def wait(hold: Callable[[], None]) -> None:
        with limits.turn():
            hold()

    elsewhere(wait)
    elsewhere(wait)

    def both_turns() -> bool:
        with limits.turn(), limits.turn():
            return (limits._max_concurrency, limits._bucket.rate) == (2, 1000.0)

    assert succeeds_in_a_copy(both_turns)


def test_work_of_a_parents_thread_is_not_waited_for(elsewhere: Elsewhere) -> None:
    flights: SingleFlight[str] = SingleFlight()

    def work(hold: Callable[[], None]) -> str:
        hold()
        return "parent"

    elsewhere(lambda hold: flights.run("k", lambda: work(hold)))
    assert succeeds_in_a_copy(lambda: flights.run("k", lambda: "child") == "child")


def test_a_connection_is_not_shared_with_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as serve:
        service = JsonService(serve(reply({"a": 1})).url)
        assert service.get({}) == {"a": 1}
        parents = service._client
        assert succeeds_in_a_copy(lambda: service._client is None and service.get({}) == {"a": 1})
        assert service._client is parents
        assert service.get({}) == {"a": 1}


def test_neither_requests_nor_copies_of_the_process_set_up_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has used it locks it while it ends; a copy that is made meanwhile would wait for it for ever."""
    made_by: list[threading.Thread] = []
    create = httpx.create_ssl_context

    def create_here() -> ssl.SSLContext:
        made_by.append(threading.current_thread())
        return create()

    monkeypatch.setattr(httpx, "create_ssl_context", create_here)
    json_service._certificates.cache_clear()
    with serving(monkeypatch) as serve:
        service = JsonService(serve(reply({"a": 1})).url)
        service.get({})
        assert made_by == [threading.current_thread()]
        assert succeeds_in_a_copy(lambda: service.get({}) == {"a": 1} and len(made_by) == 1)
        JsonService(service.url).get({})
    assert len(made_by) == 1


def test_copies_do_not_come_back_at_the_same_moments() -> None:
    state = json_service._jitter.getstate()
    assert succeeds_in_a_copy(lambda: json_service._jitter.getstate() != state)
