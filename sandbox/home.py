"""The host's side of one sandbox: requests to its runner, and the sessions that live in it."""

import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from math import ceil
from typing import Any

from agentrl.errors import InfrastructureError
from agentrl.forking import fresh_after_fork
from agentrl.sandbox.core import Limits, SandboxUnavailableError
from agentrl.sandbox.launch import runner_code
from agentrl.sandbox.link import Started
from agentrl.sandbox.reaper import end_later
from agentrl.sandbox.runner.frames import MAX_FRAME_BYTES, FrameError, encode, read_message
from agentrl.sandbox.slots import Slots

START_S = 60.0
"""A runner starts in a tenth of a second; this is for a machine that is badly overloaded."""
GRACE_S = 45.0
"""How long after the wall-clock limit a runner may take to kill a cell and to answer."""
_OPERATION_S = 60.0
_CELLS_PER_CORE = 1.5

MAX_RUNNING_CELLS = max(2, ceil(_CELLS_PER_CORE * (os.cpu_count() or 1)))
"""More cells at once would only take CPU from each other, and with it wall-clock time that is limited."""

_running_cells = Slots(MAX_RUNNING_CELLS)


class SandboxDiedError(Exception):
    """A program has brought down the sandbox that it ran in.

    Attributes:
        reason: The limit that it passed, as in `ExecResult`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the sandbox was ended ({reason})")
        self.reason = reason


class Home:
    """A running sandbox that one session, its forks and their forks share; it ends with the last of them.

    Args:
        started: What the back end has started.
        limits: Of every session.

    Raises:
        SandboxUnavailableError: The runner does not start; the message quotes its last words.
    """

    def __init__(self, started: Started, limits: Limits) -> None:
        self._link = started.link
        self._limits = limits
        self._lock = threading.Lock()
        """Held for as long as a request is under way."""
        self._send_lock = threading.Lock()
        self._ids = itertools.count(1)
        self._sessions: set[str] = set()
        self._closing: list[str] = []
        """Sessions whose end the runner is still to be told."""
        self._running: tuple[str, int] | None = None
        """Session and request of the cell that runs."""
        self.stays_when_empty = False
        """Whether the sandbox is used again after its last session."""
        self._died: str | None = None
        self.is_closed = False
        """Whether the sandbox has ended or is about to."""
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, end_later, started.link.close)  # also when the host ends
        fresh_after_fork(self, type(self).after_fork)
        config = {"root": started.root, "max_user_processes": started.max_user_processes, **asdict(limits)}
        try:
            self._link.send(runner_code(), START_S)
            self._link.send(encode(config), START_S)
            self._receive(START_S)
        except (EOFError, OSError, FrameError) as error:
            text = self._link.last_words() or str(error) or repr(error)
            self.close()
            raise SandboxUnavailableError(f"The sandbox's runner did not start: {text}") from error
        self._prepared: str | None = self._start_session()

    def open_session(self) -> str:
        """The name of a new session. For the first one an interpreter is ready.

        Raises:
            SandboxDiedError: Of a program before.
            InfrastructureError: The sandbox failed.
        """
        with self._turn():
            name, self._prepared = self._prepared, None
        if name is None:
            name = self._start_session()
        self._sessions.add(name)
        return name

    def _start_session(self) -> str:
        name = str(next(self._ids))
        answer = self._request({"op": "open", "session": name}, _OPERATION_S)
        if answer["error"] is not None:
            raise InfrastructureError(f"The sandbox cannot start an interpreter: {answer['error']}.")
        return name

    def fork_session(self, name: str) -> tuple[str, str | None]:
        """Copies a session: the name of the copy, and why there is none.

        Raises:
            SandboxDiedError: Of a program before.
            InfrastructureError: The sandbox failed.
        """
        twin = str(next(self._ids))
        with self._turn():
            try:
                self._link.resize(len(self._sessions) + 1)
            except OSError as error:
                return twin, f"the sandbox cannot be given more memory ({error})"
        answer = self._request({"op": "fork", "session": name, "twin": twin}, _OPERATION_S)
        if answer["error"] is None:
            self._sessions.add(twin)
        return twin, answer["error"]

    def run(self, name: str, code: str, number: int) -> dict[str, Any]:
        """Runs a cell in a session. Waiting for its turn does not count against its limits.

        Raises:
            SandboxDiedError: The program brought down the sandbox, or one before it did.
            InfrastructureError: The sandbox failed.
        """
        order = {"op": "run", "session": name, "code": code, "number": number}
        answer = self._request(order, self._limits.wall_s + GRACE_S)
        if answer.get("reason") == "sandbox":  # the runner's last answer
            self._died = "sandbox"
            self.close()
            raise SandboxDiedError("sandbox")
        return answer

    def ask(self, operation: str, name: str, **fields: Any) -> dict[str, Any]:
        """Does something with the files of a session.

        Raises:
            SandboxDiedError: Of a program before.
            InfrastructureError: The sandbox failed.
        """
        return self._request({"op": operation, "session": name, **fields}, _OPERATION_S)

    def is_alive(self) -> bool:
        """Whether the sandbox answers; one that does not is closed."""
        try:
            self._request({"op": "ping"}, _OPERATION_S)
        except (SandboxDiedError, InfrastructureError):
            return False
        return True

    def end_session(self, name: str) -> None:
        """Ends a session, also while its cell runs, and with the last one the sandbox unless that stays."""
        if os.getpid() != self._owner:
            return  # a forked copy of the host: the sandbox is its parent's
        self._sessions.discard(name)
        if self._sessions or self.stays_when_empty:
            self._drop(name)
        else:
            self.close()

    def _drop(self, name: str) -> None:
        self._closing.append(name)
        running = self._running
        if running is not None and running[0] == name:
            with contextlib.suppress(OSError):
                self._send({"op": "cancel", "id": running[1]}, _OPERATION_S)
        self._tell_of_ends()

    def close(self) -> None:
        """Ends the sandbox and everything in it; safe to call twice and while a cell runs."""
        if os.getpid() != self._owner:
            return
        self.is_closed = True
        self._finalizer.detach()
        self._link.close()  # waits for whoever was first

    def after_fork(self) -> None:
        """Lets go of the sandbox in a forked copy of the process that owns it."""
        self.is_closed = True
        self._finalizer.detach()
        self._link.abandon()

    def _request(self, message: dict[str, Any], limit_s: float) -> dict[str, Any]:
        with self._turn():
            if message["op"] != "run":
                return self._exchange(message, limit_s)
            with _running_cells.taken():
                return self._exchange(message, limit_s)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Waits until no other thread talks to the runner, and at the end tells it which sessions have ended.

        Raises:
            InfrastructureError: The sandbox is not this process's.
        """
        if os.getpid() != self._owner:  # its lock may be held for ever
            raise InfrastructureError(
                "This sandbox session belongs to the parent of this process; open another one in each process."
            )
        with self._lock:
            yield
            self._end_closing()  # before the next cell, which may take long
        self._tell_of_ends()

    def _tell_of_ends(self) -> None:
        """Tells the runner which sessions have ended, unless another thread is talking to it, which does so after."""
        while self._closing and self._lock.acquire(blocking=False):
            try:
                self._end_closing()
            finally:
                self._lock.release()

    def _end_closing(self) -> None:
        while self._closing:
            with contextlib.suppress(SandboxDiedError, InfrastructureError):  # who asks for something next is told
                self._exchange({"op": "close", "session": self._closing.pop()}, _OPERATION_S)

    def _exchange(self, message: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            SandboxDiedError: The program brought down the sandbox, or one before it did.
            InfrastructureError: No such answer came.
        """
        if self._died is not None:
            raise SandboxDiedError("ended")
        if self.is_closed:
            raise InfrastructureError("This sandbox session is closed.")
        request_id = next(self._ids)
        is_cell = message["op"] == "run"
        self._running = (message["session"], request_id) if is_cell else None
        try:
            self._send({"id": request_id, **message}, limit_s)
            answer = self._receive(limit_s)
            if answer.get("id") != request_id:
                raise FrameError(f"an answer to request {request_id} was expected, got {answer.get('id')!r}")
        except (EOFError, OSError, FrameError) as error:
            raise self._failure(error, is_cell=is_cell) from error
        finally:
            self._running = None
        return answer

    def _failure(self, error: Exception, *, is_cell: bool) -> Exception:
        """Whose fault it is that no answer came. The sandbox is closed in any case."""
        if self.is_closed:
            return InfrastructureError("This sandbox session was closed while it was in use.")
        if is_cell and isinstance(error, TimeoutError):
            if self._link.is_reachable():
                self._died = "wall"  # nothing in a sandbox outlives this but what a program has made
        elif self._link.ran_out_of_memory():
            self._died = "memory"
        text = self._link.last_words() or str(error)
        self.close()
        return SandboxDiedError(self._died) if self._died else InfrastructureError(f"The sandbox failed: {text}.")

    def _send(self, message: Mapping[str, Any], limit_s: float) -> None:
        with self._send_lock:
            self._link.send(encode(message), limit_s)

    def _receive(self, limit_s: float) -> dict[str, Any]:
        """The next message.

        Raises:
            EOFError: The sandbox has ended; so may OSError say.
            FrameError: What came is no message.
        """
        return read_message(lambda num_bytes: self._link.receive(num_bytes, limit_s), self._max_answer_bytes)

    @property
    def _max_answer_bytes(self) -> int:
        """Largest answer accepted: head and tail of the output, every byte written as six, and the other fields."""
        return MAX_FRAME_BYTES + 12 * int(self._limits.output_bytes)
