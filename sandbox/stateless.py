"""`share: stateless`: many short programs, one after the other, in a few sandboxes that are not thrown away.

Faster than a sandbox for every episode, and weaker: each program gets a fresh interpreter and fresh folders, and all
its processes are killed after it, but programs of different episodes run in the same sandbox one after the other, with
the same user id, and the memory of a fresh interpreter is a copy of its runner's.
"""

import threading
from collections.abc import Mapping
from typing import Protocol, Self

from agentrl.errors import InfrastructureError
from agentrl.forking import fresh_after_fork
from agentrl.sandbox.core import ExecResult, Limits, SandboxFileError, SecurityLevel
from agentrl.sandbox.home import MAX_RUNNING_CELLS, Home
from agentrl.sandbox.link import Started
from agentrl.sandbox.session import RunnerSandbox, RunnerSession, check_files, retrying
from agentrl.sandbox.slots import Slots


class StatelessSandbox(RunnerSandbox):
    """Runs every cell as a program of its own, in sandboxes that all sessions share.

    Args:
        sandbox: The back end.
    """

    keeps_state = False

    def __init__(self, sandbox: RunnerSandbox) -> None:
        self.name = sandbox.name
        self.security_level = sandbox.security_level
        self._sandbox = sandbox
        self._turns = Slots(MAX_RUNNING_CELLS)
        self.after_fork()
        fresh_after_fork(self, type(self).after_fork)

    def after_fork(self) -> None:
        """Begins without sandboxes: also in a forked copy of this process, where they are its parent's."""
        self._lock = threading.Lock()
        self._idle: dict[Limits, list[Home]] = {}

    def start(self, limits: Limits) -> Started:
        """Starts a sandbox of the back end."""
        return self._sandbox.start(limits)

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> "StatelessSession":  # type: ignore[override]
        """A session that remembers nothing but `files`, which every cell finds in its working directory.

        Raises:
            ConfigError: A path in `files` leaves the working directory.
        """
        return StatelessSession(self, limits, check_files(files or {}))

    def run_program(self, code: str, limits: Limits, files: Mapping[str, bytes]) -> ExecResult:
        """Runs one program in a fresh interpreter.

        Raises:
            InfrastructureError: The sandboxes fail. A program that may have had effects outside is not run again.
        """
        with self._turns.taken():
            if self.security_level > SecurityLevel.NONE:
                return retrying(lambda: self._run(self._prepare(limits, files), code, limits))
            return self._run(retrying(lambda: self._prepare(limits, files)), code, limits)

    def close(self) -> None:
        """Ends the sandboxes that wait for work."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for home in (home for homes in idle.values() for home in homes):
            home.close()

    def _prepare(self, limits: Limits, files: Mapping[str, bytes]) -> RunnerSession:
        return RunnerSession(self, limits, files, self._open_home(limits))

    def _run(self, session: RunnerSession, code: str, limits: Limits) -> ExecResult:
        try:
            result = session.run(code)
        except BaseException:
            session.home.close()
            raise
        home = session.home  # another than before, if the program has brought that one down
        home.stays_when_empty = True
        session.close()
        with self._lock:
            self._idle.setdefault(limits, []).append(home)
        return result

    def _open_home(self, limits: Limits) -> Home:
        """A sandbox that has nothing to do, or else a new one."""
        while (home := self._take(limits)) is not None:
            if home.is_alive():
                return home
        return self.open_home(limits)

    def _take(self, limits: Limits) -> Home | None:
        with self._lock:
            idle = self._idle.get(limits)
            return idle.pop() if idle else None


class ProgramRunner(Protocol):
    """What a session without state needs of its back end."""

    def run_program(self, code: str, limits: Limits, files: Mapping[str, bytes]) -> ExecResult:
        """Runs one program that finds `files` in its working directory.

        Raises:
            InfrastructureError: The back end fails.
        """
        ...


class StatelessSession:
    """Cells that know nothing of each other.

    Args:
        sandbox: Runs them.
        limits: Of each.
        files: Relative path to content, for each.
    """

    def __init__(self, sandbox: ProgramRunner, limits: Limits, files: Mapping[str, bytes]) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._files = dict(files)
        self._is_closed = False

    def run(self, code: str) -> ExecResult:
        """Runs one cell as a program of its own.

        Raises:
            InfrastructureError: The sandboxes fail, or the session is closed.
        """
        if self._is_closed:
            raise InfrastructureError("This sandbox session is closed.")
        return self._sandbox.run_program(code, self._limits, self._files)

    def fork(self) -> Self:
        """Another such session with the same files."""
        return type(self)(self._sandbox, self._limits, self._files)

    def read(self, path: str, max_bytes: int) -> bytes:
        """A file that was given or written to the session; what cells write is gone with them.

        Raises:
            SandboxFileError: There is no such file, or it is larger than `max_bytes`.
        """
        if path not in self._files:
            raise SandboxFileError(f"Cannot read {path!r}: there is no such file, as no cell's files are kept.")
        if len(self._files[path]) > max_bytes:
            raise SandboxFileError(
                f"The file {path!r} has {len(self._files[path]):,} bytes; at most {max_bytes:,} are read."
            )
        return self._files[path]

    def write(self, path: str, data: bytes) -> None:
        """Gives the cells to come a file.

        Raises:
            ConfigError: The path leaves the working directory.
        """
        self._files.update(check_files({path: data}))

    def list_files(self) -> list[str]:
        """Paths of the files that cells are given."""
        return sorted(self._files)

    def close(self) -> None:
        """Ends the session; safe to call twice."""
        self._is_closed = True
