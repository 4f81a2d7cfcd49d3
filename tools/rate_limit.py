"""How many requests a host gets: so many a second, and so many at a time, from all tools of this process together."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.forking import fresh_after_fork

MAX_WAIT_S = 600.0
"""A request that would wait longer for its turn fails: the run asks for far more than it may."""


class TokenBucket:
    """Lets `rate` requests a second through on average, and at once as many as one second brings, or one.

    Kept as the one time at which an idle bucket would be full again (the generic cell rate algorithm of ATM), so that
    nothing has to run in between. Not safe for several threads by itself.

    Args:
        rate: Requests per second; None for any number.
        clock: Gives the present time in seconds.
    """

    def __init__(self, rate: float | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._full_at = -math.inf

    def reserve(self, max_wait_s: float = math.inf) -> float | None:
        """Takes a token that is there now or later.

        Args:
            max_wait_s: The token is not taken if it comes later than this.

        Returns:
            Seconds until it is there; None if it was not taken.
        """
        now = self._clock()
        interval_s, burst_s = (0.0, 0.0) if self.rate is None else (1 / self.rate, max(0.0, 1 - 1 / self.rate))
        wait_s = max(0.0, self._full_at - burst_s - now)
        if wait_s > max_wait_s:
            return None
        self._full_at = max(self._full_at, now) + interval_s
        return wait_s

    def hold(self, seconds: float) -> None:
        """Gives nothing out for a while, and then no burst."""
        burst_s = 0.0 if self.rate is None else max(0.0, 1 - 1 / self.rate)
        self._full_at = max(self._full_at, self._clock() + seconds + burst_s)


class HostLimits:
    """The limits of one host: a `Gate` for all services that ask it.

    Args:
        host: Named in errors.
        bucket: Limits the requests per second.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self, host: str, *, bucket: TokenBucket | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._host = host
        self._bucket = bucket or TokenBucket()
        self._sleep = sleep
        self._max_concurrency = 1
        self._begin()
        fresh_after_fork(self, HostLimits._begin)  # the requests of the parent's threads never end in its copy

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._running: set[object] = set()

    def set(self, rate: float | None, max_concurrency: int) -> None:
        """Changes the limits, also for who waits already.

        Raises:
            ConfigError: Not a positive number.
        """
        if rate is not None and not 0 < rate < math.inf:
            raise ConfigError(f"rate is a positive number of requests per second, or null for any; got {rate!r}.")
        if max_concurrency < 1:
            raise ConfigError(
                f"max_concurrency is the number of requests at a time, at least 1; got {max_concurrency}."
            )
        with self._changed:
            self._bucket.rate = rate
            self._max_concurrency = max_concurrency
            self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until one request may be sent, and counts it as running inside the `with` block.

        Raises:
            InfrastructureError: Its turn does not come within `MAX_WAIT_S`.
        """
        request = object()
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._running) < self._max_concurrency, MAX_WAIT_S):
                raise InfrastructureError(self._crowded(f"max_concurrency={self._max_concurrency}"))
            self._running.add(request)
        try:
            with self._changed:  # the token after the slot, so that requests leave at the moments that tokens are for
                wait_s = self._bucket.reserve(MAX_WAIT_S)
            if wait_s is None:
                raise InfrastructureError(self._crowded(f"rate={self._bucket.rate}, or the pause that the host wants"))
            if wait_s:
                self._sleep(wait_s)
            yield
        finally:
            with self._changed:
                self._running.discard(request)
                self._changed.notify_all()

    def hold(self, seconds: float) -> None:
        """Lets nothing through for a while: the host asked for it."""
        with self._changed:
            self._bucket.hold(seconds)

    def _crowded(self, limit: str) -> str:
        return (
            f"A request to {self._host} would wait for its turn longer than {MAX_WAIT_S:g} s ({limit}). Raise the "
            "limit if the host allows it, run fewer episodes at a time, or use a cache."
        )


_hosts: dict[str, HostLimits] = {}


def limits_of(host: str, rate: float | None, max_concurrency: int) -> HostLimits:
    """The limits that everything in this process that asks one host shares; the last caller sets them.

    Args:
        host: Name and port.
        rate: Requests per second; None for any number.
        max_concurrency: Requests at a time.

    Raises:
        ConfigError: Not a positive number.
    """
    limits = _hosts.get(host) or _hosts.setdefault(host, HostLimits(host))
    limits.set(rate, max_concurrency)
    return limits
