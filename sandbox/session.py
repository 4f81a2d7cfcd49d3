"""Sessions of the back ends that run our own runner, whatever they put around it."""

import base64
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Self, TypeVar

from agentrl.errors import ConfigError, ForkError, InfrastructureError
from agentrl.sandbox.core import ExecResult, Limits, SandboxFileError, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.home import Home, SandboxDiedError
from agentrl.sandbox.link import Started
from agentrl.sandbox.reaper import end_later, ensure_reaper
from agentrl.sandbox.result import died_result, to_result, too_long_result
from agentrl.sandbox.runner.session_files import CHUNK_BYTES
from agentrl.sandbox.slots import Slots

_ATTEMPTS = 4
_FIRST_PAUSE_S = 0.25
_starting = Slots(max(2, os.cpu_count() or 1))

T = TypeVar("T")


class RunnerSandbox(ABC):
    """A back end: it starts the runner behind some kind of wall."""

    name: str
    security_level: SecurityLevel
    keeps_state = True

    @abstractmethod
    def start(self, limits: Limits) -> Started:
        """Starts a sandbox in which a runner waits for its code.

        Raises:
            SandboxUnavailableError: The back end cannot run here; the message names the remedy.
            InfrastructureError: It failed in a way that may pass.
        """

    def check(self) -> None:
        """Finds out whether the back end can be used here, by starting a sandbox and running a cell in it.

        Raises:
            SandboxUnavailableError: It cannot; the message names the remedy.
        """
        try:
            with self.open(limits=Limits()) as session:
                session.run("1")
        except SandboxUnavailableError:
            raise
        except InfrastructureError as error:
            raise SandboxUnavailableError(f"The sandbox {self.name} was tried and failed: {error}") from error

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> "RunnerSession":
        """Starts a session with `files` (relative path to content) in its working directory; tries several times.

        Raises:
            ConfigError: A path in `files` leaves the working directory.
            SandboxUnavailableError: The back end cannot run here.
            InfrastructureError: It failed several times.
        """
        checked = check_files(files or {})
        return retrying(lambda: RunnerSession(self, limits, checked, self.open_home(limits)))

    def open_home(self, limits: Limits) -> Home:
        """A running sandbox without a session. Only so many are started at a time as there are cores.

        Raises:
            SandboxUnavailableError: The back end cannot run here.
            InfrastructureError: It failed in a way that may pass.
        """
        ensure_reaper()
        with _starting.taken():
            return Home(self.start(limits), limits)


def retrying(attempt: Callable[[], T]) -> T:
    """What an attempt gives, which is made several times if sandboxes fail.

    Raises:
        SandboxUnavailableError: At once: this does not pass.
        InfrastructureError: Of the last attempt.
    """
    pause_s = _FIRST_PAUSE_S
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except SandboxUnavailableError:
            raise
        except InfrastructureError:
            time.sleep(pause_s)
            pause_s *= 2
    return attempt()


class RunnerSession:
    """One interpreter whose names live from cell to cell, in a sandbox that it shares with its forks alone.

    A session and its forks are separated by processes and folders, not by a wall: they run one cell at a time, have
    the same user id, and a program that means harm can disturb its own forks. Sessions that were opened apart share
    nothing.

    Args:
        sandbox: Where to start again should a program bring down the sandbox that it runs in.
        limits: Of the session.
        files: Relative path to content, laid into the working directory.
        home: The sandbox to live in.
        name: Of the session in its home, if it exists there already.
    """

    def __init__(
        self, sandbox: RunnerSandbox, limits: Limits, files: Mapping[str, bytes], home: Home, name: str | None = None
    ) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._files = files
        self._num_cells = 0
        self._is_closed = False
        if name is None:
            self._move_in(home)
        else:
            self._live_in(home, name)

    def _live_in(self, home: Home, name: str) -> None:
        self.home = home
        """The sandbox that the session lives in."""
        self._name = name
        self._finalizer = weakref.finalize(self, end_later, partial(home.end_session, name))

    def _move_in(self, home: Home) -> None:
        """Starts an interpreter in a sandbox where no session lives."""
        try:
            self._live_in(home, home.open_session())
            for path, data in self._files.items():
                self.write(path, data)
        except BaseException as error:
            home.close()
            if isinstance(error, SandboxDiedError | SandboxFileError):
                raise InfrastructureError(f"The session cannot be prepared: {error}") from error
            raise

    def run(self, code: str) -> ExecResult:
        """Runs one cell. A cell that is killed leaves the names, though not the files, from before it.

        If a program brings down the whole sandbox, or had done so since the last cell, the session goes on in a new
        one with nothing but its first files; the result says so (`state` is "reset").

        Raises:
            InfrastructureError: The sandbox failed; the session cannot be used any more.
        """
        if self._is_closed:
            raise InfrastructureError("This sandbox session is closed.")
        if too_long := too_long_result(code, self._limits, keeps_state=self._sandbox.keeps_state):
            return too_long
        self._num_cells += 1
        begun = time.monotonic()
        try:
            answer = self.home.run(self._name, code, self._num_cells)
            return to_result(answer, self._limits, keeps_state=self._sandbox.keeps_state)
        except SandboxDiedError as death:
            wall_s = time.monotonic() - begun
            self._finalizer.detach()  # all of that home has ended
            retrying(lambda: self._move_in(self._sandbox.open_home(self._limits)))
            return died_result(death.reason, self._limits, wall_s, keeps_state=self._sandbox.keeps_state)

    def fork(self) -> Self:
        """A session in the same state, by forking the interpreter and copying its folder: nothing runs twice.

        Names, imported modules, random generators, the current directory and files that are open in the folder are
        copied.

        Raises:
            ForkError: The interpreter holds what two processes would share: a running thread, an open pipe or socket,
                shared memory. Or the sandbox has no room for a copy.
            InfrastructureError: The sandbox failed.
        """
        if self._is_closed:
            raise InfrastructureError("This sandbox session is closed.")
        try:
            twin, error = self.home.fork_session(self._name)
        except SandboxDiedError as death:
            raise ForkError("A program has brought down the sandbox, so there is no state to copy.") from death
        if error is not None:
            raise ForkError(f"The interpreter's state cannot be copied: {error}.")
        session = type(self)(self._sandbox, self._limits, self._files, self.home, twin)
        session._num_cells = self._num_cells
        return session

    def read(self, path: str, max_bytes: int) -> bytes:
        """The content of a regular file below the working directory. No link is followed.

        Raises:
            SandboxFileError: There is no such file, or it is larger than `max_bytes`.
            InfrastructureError: The sandbox failed.
        """
        data = b""
        while True:
            answer = self._ask("read", path=path, offset=len(data))
            if answer["size"] > max_bytes:
                raise SandboxFileError(
                    f"The file {path!r} has {answer['size']:,} bytes; at most {max_bytes:,} are read."
                )
            piece = base64.b64decode(answer["data"])
            data += piece
            if not piece or len(data) >= answer["size"]:
                return data[:max_bytes]

    def write(self, path: str, data: bytes) -> None:
        """Writes a file below the working directory, and the folders that lead to it.

        Raises:
            SandboxFileError: There is no space, or something else of that name.
            InfrastructureError: The sandbox failed.
        """
        for start in range(0, max(1, len(data)), CHUNK_BYTES):
            piece = base64.b64encode(data[start : start + CHUNK_BYTES]).decode()
            self._ask("write", path=path, data=piece, append=start > 0)

    def list_files(self) -> list[str]:
        """Paths of the regular files below the working directory, sorted; the first 1,000.

        Raises:
            InfrastructureError: The sandbox failed.
        """
        return [str(path) for path in self._ask("list")["paths"]]

    def close(self) -> None:
        """Ends the session and every process in it; safe to call twice and while a cell runs."""
        self._is_closed = True
        if self._finalizer.detach() is not None:  # nobody was here before
            self.home.end_session(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        if self._is_closed:
            raise InfrastructureError("This sandbox session is closed.")
        try:
            answer = self.home.ask(operation, self._name, **fields)
        except SandboxDiedError as death:
            raise SandboxFileError("A program has brought down the sandbox; its files are lost.") from death
        if answer["error"] is not None:
            raise SandboxFileError(f"Cannot {operation} {fields.get('path', 'files')!r}: {answer['error']}.")
        return answer


def check_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a new session, if their paths are fit for it.

    Raises:
        ConfigError: A path leaves the working directory.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ConfigError(f"Files of a session need a path below its working directory, got {name!r}.")
    return dict(files)
