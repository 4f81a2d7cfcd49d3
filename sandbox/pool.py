"""Sandboxes that are ready before anybody asks: starting one takes longer than most cells run."""

import threading
from collections import defaultdict
from collections.abc import Mapping

from agentrl.errors import ConfigError, InfrastructureError
from agentrl.forking import fresh_after_fork
from agentrl.sandbox.core import Limits
from agentrl.sandbox.home import Home
from agentrl.sandbox.link import Started
from agentrl.sandbox.session import RunnerSandbox, RunnerSession


class WarmPool(RunnerSandbox):
    """Keeps sandboxes of a back end ready and starts new ones in the background for those that were handed out.

    Each is handed out once, to one session, and ended with it: nothing of an episode can be found by another.

    Args:
        sandbox: The back end.
        num_ready: How many are kept ready, for each set of limits that sessions are opened with.

    Raises:
        ConfigError: `num_ready` is below 1.
    """

    def __init__(self, sandbox: RunnerSandbox, *, num_ready: int) -> None:
        if num_ready < 1:
            raise ConfigError(f"A pool keeps at least one sandbox ready, got num_ready={num_ready!r}.")
        self.name = sandbox.name
        self.security_level = sandbox.security_level
        self._sandbox = sandbox
        self._num_ready = num_ready
        self.after_fork()
        fresh_after_fork(self, type(self).after_fork)

    def start(self, limits: Limits) -> Started:
        """Starts a sandbox of the back end."""
        return self._sandbox.start(limits)

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> RunnerSession:
        """Starts a session in a sandbox that is ready, see `RunnerSandbox.open`."""
        session = super().open(limits=limits, files=files)
        self._refill(limits)
        return session

    def open_home(self, limits: Limits) -> Home:
        """A sandbox that is ready, or else a new one."""
        while (home := self._take(limits)) is not None:
            if home.is_alive():  # an engine may have been stopped since
                return home
        return super().open_home(limits)

    def close(self) -> None:
        """Ends the sandboxes that are ready, not those that were handed out; the pool can be used again."""
        with self._lock:
            homes = [home for ready in self._ready.values() for home in ready]
            self._ready.clear()
            self._is_closed = True
        for home in homes:
            home.close()

    def count_ready(self, limits: Limits) -> int:
        """How many sandboxes wait to be handed out."""
        with self._lock:
            return len(self._ready[limits])

    def _take(self, limits: Limits) -> Home | None:
        with self._lock:
            ready = self._ready[limits]
            return ready.pop(0) if ready else None

    def _refill(self, limits: Limits) -> None:
        with self._lock:
            self._is_closed = False
            num_missing = self._num_ready - len(self._ready[limits]) - self._num_starting[limits]
            self._num_starting[limits] += num_missing
        for _ in range(num_missing):
            thread = threading.Thread(target=self._add, args=(limits,), name="agentrl-sandbox-pool", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system gives no thread now; the next session asks again
                with self._lock:
                    self._num_starting[limits] -= 1

    def _add(self, limits: Limits) -> None:
        home = None
        try:
            home = super().open_home(limits)
        except InfrastructureError:
            return  # who needs a sandbox next starts one, and gets the error
        finally:
            with self._lock:
                self._num_starting[limits] -= 1
                is_wanted = not self._is_closed
                if home is not None and is_wanted:
                    self._ready[limits].append(home)
        if not is_wanted:
            home.close()

    def after_fork(self) -> None:
        """Begins without sandboxes: also in a forked copy of this process, where they are its parent's."""
        self._lock = threading.Lock()
        self._ready: defaultdict[Limits, list[Home]] = defaultdict(list)
        self._num_starting: defaultdict[Limits, int] = defaultdict(int)
        self._is_closed = False
