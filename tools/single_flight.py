"""Equal questions at the same time are asked once."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from agentrl.forking import fresh_after_fork

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Work by key: who comes while somebody works for the same key waits for that result, or that failure.

    Example:
        flights: SingleFlight[str] = SingleFlight()
        page = flights.run(url, lambda: download(url))
    """

    def __init__(self) -> None:
        self._begin()
        fresh_after_fork(self, SingleFlight._begin)  # the work of the parent's threads never ends in its copy

    def _begin(self) -> None:
        self._flights: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """The result of the work, of this caller's or of one that runs already.

        Raises:
            BaseException: Whatever the work raised.
        """
        with self._lock:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if leads:
            try:
                result = work()
            except BaseException as error:
                self._land(key, flight)
                flight.set_exception(error)
                raise
            self._land(key, flight)
            flight.set_result(result)
        return flight.result()

    def _land(self, key: Hashable, flight: Future[T]) -> None:
        """Before the result is out: who comes from now on starts anew."""
        with self._lock:
            if self._flights.get(key) is flight:  # not after a fork within the work
                del self._flights[key]
