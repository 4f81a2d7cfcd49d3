"""Requests per second and at a time, counted with a clock that only tests move."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.tools import rate_limit
from agentrl.tools.rate_limit import MAX_WAIT_S, HostLimits, TokenBucket, limits_of


class Clock:
    """Stands still except while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def limits(clock: Clock, rate: float | None, max_concurrency: int = 1) -> HostLimits:
    made = HostLimits("host", bucket=TokenBucket(clock=clock), sleep=clock.sleep)
    made.set(rate, max_concurrency)
    return made


def test_a_bucket_gives_one_second_at_once_and_then_one_by_one() -> None:
    bucket = TokenBucket(4.0, clock=Clock())
    # Four tokens are there; each one after them comes a quarter of a second later.
    assert [bucket.reserve() for _ in range(7)] == pytest.approx([0, 0, 0, 0, 0.25, 0.5, 0.75], abs=1e-9)


def test_a_slow_bucket_gives_one_at_once() -> None:
    clock = Clock()
    bucket = TokenBucket(0.5, clock=clock)
    assert [bucket.reserve() for _ in range(3)] == pytest.approx([0, 2, 4], abs=1e-9)
    clock.now += 5  # the next one would come at 6
    assert bucket.reserve() == pytest.approx(1, abs=1e-9)


def test_an_idle_bucket_fills_up_and_no_further() -> None:
    clock = Clock()
    bucket = TokenBucket(2.0, clock=clock)
    for idle_s in (0, 1, 1000):
        clock.now += idle_s
        assert [bucket.reserve(max_wait_s=0) for _ in range(3)] == [0, 0, None]


def test_a_token_that_comes_too_late_is_not_taken() -> None:
    bucket = TokenBucket(1.0, clock=Clock())
    assert [bucket.reserve(0.5), bucket.reserve(0.5), bucket.reserve(1.0)] == [0, None, 1]


def test_no_rate_is_no_limit_but_a_pause_is_kept() -> None:
    clock = Clock()
    bucket = TokenBucket(clock=clock)
    assert [bucket.reserve() for _ in range(1000)] == [0] * 1000
    bucket.hold(3)
    assert [bucket.reserve(), bucket.reserve()] == [3, 3]
    clock.now += 3
    assert bucket.reserve() == 0


def test_after_a_pause_there_is_no_burst() -> None:
    bucket = TokenBucket(4.0, clock=Clock())
    bucket.hold(3)
    assert [bucket.reserve() for _ in range(3)] == pytest.approx([3, 3.25, 3.5], abs=1e-9)


@given(st.floats(0.1, 50), st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_no_second_ever_sees_more_than_rate_and_burst(rate: float, gaps: list[float]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock=clock)
    sent: list[float] = []
    for gap in gaps:
        clock.now += gap
        sent.append(clock.now + (bucket.reserve() or 0.0))
    # In any span of T seconds at most rate * T requests, and what had piled up: one second's worth, or one.
    for first, last in itertools.combinations(range(len(sent)), 2):
        assert last - first + 1 <= rate * (sent[last] - sent[first]) + max(1.0, rate) + 1e-6


def test_turns_are_spread_by_the_rate() -> None:
    clock = Clock()
    gate = limits(clock, 2.0)
    times = []
    for _ in range(6):
        with gate.turn():
            times.append(clock.now - 100)
    assert times == pytest.approx([0, 0, 0.5, 1.0, 1.5, 2.0], abs=1e-9)


def test_no_more_run_at_a_time_than_allowed() -> None:
    gate = limits(Clock(), None, max_concurrency=3)
    running, most = 0, 0
    lock, full = threading.Lock(), threading.Barrier(3)

    def request(_: int) -> None:
        nonlocal running, most
        with gate.turn():
            with lock:
                running += 1
                most = max(most, running)
            full.wait(60)  # passes only while three run
            with lock:
                running -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(request, range(12)))
    assert most == 3


def test_a_failed_request_gives_its_place_back() -> None:
    gate = limits(Clock(), None)
    for _ in range(3):
        with pytest.raises(ValueError, match="oh"), gate.turn():
            raise ValueError("oh")


def test_a_pause_that_the_host_asks_for_holds_everybody() -> None:
    clock = Clock()
    gate = limits(clock, None, 2)
    gate.hold(7)
    with gate.turn():
        pass
    assert clock.slept == [7]


@pytest.mark.parametrize(("rate", "hold"), [(1 / (MAX_WAIT_S + 1), 0.0), (None, MAX_WAIT_S + 1)])
def test_a_hopeless_wait_fails_at_once(rate: float | None, hold: float) -> None:
    clock = Clock()
    gate = limits(clock, rate)
    if hold:
        gate.hold(hold)
    else:
        with gate.turn():  # the next token comes a moment too late
            pass
    with pytest.raises(InfrastructureError, match=r"A request to host would wait .* longer than 600 s"), gate.turn():
        pass
    assert clock.slept == []


def test_a_host_has_one_set_of_limits_and_the_last_caller_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "_hosts", {})
    assert limits_of("a:1", 2.0, 3) is limits_of("a:1", None, 5)
    assert limits_of("a:1", None, 5) is not limits_of("a:2", None, 5)


@pytest.mark.parametrize(("rate", "most"), [(0.0, 1), (-1.0, 1), (math.inf, 1), (math.nan, 1), (None, 0)])
def test_senseless_limits_are_refused(rate: float | None, most: int) -> None:
    with pytest.raises(ConfigError, match=r"rate is a positive number|max_concurrency is the number"):
        limits(Clock(), rate, most)
