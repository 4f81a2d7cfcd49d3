"""The back end `unsafe_subprocess`: a worker process per session, under limits, with no isolation at all.

**Not a security boundary.** Cells run with the rights of whoever started the training: they can read and write the
user's files, use the network and signal other processes. The limits hold against accidents: endless loops, too much
output or memory, crashes, left-over processes. Every descendant of a worker is found and killed on Linux, also one
that left its process group; elsewhere only the process group is. What no back end without isolation can stop is a
program that means harm, for example one that kills its own supervisor.

Design: every session has a supervisor (worker.py) whose child, the interpreter, runs the cells. The supervisor lives
for as long as the socket to the host is open: however the host ends, it cleans up and ends too.
"""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from agentrl.errors import ConfigError, ForkError, InfrastructureError
from agentrl.sandbox.core import ExecResult, Limits, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.frames import Channel, FrameError, pair
from agentrl.sandbox.launch import worker_command, worker_environment
from agentrl.sandbox.session_folder import remove_folder
from agentrl.text import clip_ends

FOLDER_PREFIX = "agentrl-session-"
_START_S = 60.0
"""A worker starts in 50 ms; this is for a machine that is badly overloaded."""
_GRACE_S = 10.0
"""How long after the wall-clock limit a supervisor may take to kill a cell and to answer."""
_CLOSE_S = 10.0


class UnsafeSubprocess:
    """Opens sessions in plain subprocesses; not a security boundary (see the module's text)."""

    name = "unsafe_subprocess"
    security_level = SecurityLevel.NONE

    def open(self, *, limits: Limits, files: Mapping[str, bytes] | None = None) -> "SubprocessSession":
        """Starts a session with `files` (relative path to content) in its working directory.

        Raises:
            ConfigError: A path in `files` leaves the working directory.
            SandboxUnavailableError: No worker can be started here.
        """
        if os.name != "posix":
            raise SandboxUnavailableError(
                f"The sandbox unsafe_subprocess needs a POSIX system (fork), this is {os.name!r}; use WSL or Linux."
            )
        root = _make_folder(files or {})
        ours, theirs = pair(_max_answer_bytes(limits))
        try:
            worker = subprocess.Popen(
                worker_command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=worker_environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            remove_folder(root)
            raise SandboxUnavailableError(f"No worker process can be started: {error}") from error
        finally:
            theirs.close()
        return SubprocessSession(_Connection(ours, root, worker, worker.pid), limits)


class SubprocessSession:
    """One interpreter in a worker process.

    Cells see the session's own folder as their current directory. Open files, threads and other state that a process
    has are handled as `fork(2)` does, with the exceptions named at `fork`.
    """

    def __init__(self, connection: "_Connection", limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._num_requests = 0
        self._finalizer = weakref.finalize(self, connection.close)
        try:
            connection.channel.send({"root": connection.root, **asdict(limits)}, timeout_s=_START_S)
            connection.channel.receive(_START_S)
        except (EOFError, OSError, FrameError) as error:
            text = connection.last_words() or repr(error)
            self.close()
            raise SandboxUnavailableError(f"The sandbox worker did not start: {text}") from error

    def run(self, code: str) -> ExecResult:
        """Runs one cell. A cell that is killed leaves the names, though not the files, from before it.

        Raises:
            InfrastructureError: The worker died or does not answer; the session cannot be used any more.
        """
        num_bytes = len(code.encode("utf-8", "surrogatepass"))
        if num_bytes > self._limits.code_bytes:
            text = f"The code has {num_bytes:,} bytes; at most {self._limits.code_bytes:,} are accepted.\n"
            return ExecResult(status="error", output=text, output_bytes=len(text), cpu_s=0.0, wall_s=0.0)
        answer = self._request({"op": "run", "code": code}, (), self._limits.wall_s + _GRACE_S)
        return _to_result(answer, self._limits)

    def fork(self) -> Self:
        """A session in the same state, by forking the interpreter and copying its folder: nothing runs twice.

        Names, imported modules, random generators, the current directory and files that are open in the folder are
        copied. A path that a cell has kept as absolute text still names the original's folder.

        Raises:
            ForkError: The interpreter holds what two processes would share: a running thread, an open pipe or socket,
                shared memory.
            InfrastructureError: The worker died or does not answer.
        """
        root = _make_folder({})
        ours, theirs = pair(_max_answer_bytes(self._limits))
        try:
            answer = self._request({"op": "fork", "root": root}, [theirs.fileno()], _START_S)
            if answer["error"] is not None:
                raise ForkError(f"The interpreter's state cannot be copied: {answer['error']}.")
        except BaseException:
            ours.close()
            remove_folder(root)
            raise
        finally:
            theirs.close()
        return type(self)(_Connection(ours, root, None, answer["pid"]), self._limits)

    def close(self) -> None:
        """Ends the session, every process in it and its folder; safe to call twice and while a cell runs."""
        self._finalizer()

    def _request(self, request: dict[str, Any], fds: tuple[int, ...] | list[int], limit_s: float) -> dict[str, Any]:
        """Sends one request and waits for its answer.

        Raises:
            InfrastructureError: No such answer came.
        """
        with self._connection.lock:
            if not self._finalizer.alive:
                raise InfrastructureError("This sandbox session is closed.")
            self._num_requests += 1
            try:
                self._connection.channel.send({"id": self._num_requests, **request}, fds, timeout_s=limit_s)
                answer, _ = self._connection.channel.receive(limit_s)
                if answer.get("id") != self._num_requests:
                    raise FrameError(f"an answer to request {self._num_requests} was expected, got {answer.get('id')}")
            except (EOFError, OSError, FrameError) as error:
                if not self._finalizer.alive:
                    raise InfrastructureError("This sandbox session was closed while it was in use.") from error
                text = self._connection.last_words() or str(error)
                self.close()
                raise InfrastructureError(f"The sandbox worker failed: {text}.") from error
            return answer


class _Connection:
    """What the host holds of a worker: the channel, the process, the folder.

    Args:
        channel: To the supervisor.
        root: The session's folder.
        worker: The supervisor, if this process started it.
        pid: Its process id.
    """

    def __init__(self, channel: Channel, root: str, worker: subprocess.Popen[bytes] | None, pid: int) -> None:
        self.channel = channel
        self.root = root
        self._worker = worker
        self._pid = pid
        self.lock = threading.RLock()
        """Held for as long as a request is under way; a close in another thread ends the request first."""
        self._owner = os.getpid()

    def close(self) -> None:
        """Hangs up, waits until the supervisor has ended all its processes, and kills it if it does not."""
        if os.getpid() != self._owner:  # a forked copy of the host: the session is its parent's
            self.channel.close()
            return
        self.channel.shut_down()
        if not self._ended(_CLOSE_S):
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
            self._ended(1.0)
        with self.lock:
            if self._worker is not None:
                self._worker.wait()
                if self._worker.stderr is not None:
                    self._worker.stderr.close()
            self.channel.close()
        remove_folder(self.root)

    def last_words(self) -> str:
        """The last line that a worker which could not start wrote to its standard error."""
        if self._worker is None or self._worker.stderr is None:
            return ""
        self.channel.shut_down()
        if not self._ended(1.0):
            return ""
        lines = self._worker.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _ended(self, limit_s: float) -> bool:
        """Whether the supervisor closes its end, which it does by ending, within a time."""
        poll = select.poll()
        poll.register(self.channel.fileno(), 0)  # hang-ups are always reported
        deadline = time.monotonic() + limit_s
        while True:
            if poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return True
            if time.monotonic() >= deadline:
                return False


def _make_folder(files: Mapping[str, bytes]) -> str:
    """A new private session folder with `files` in it; the caller removes it.

    Raises:
        ConfigError: A path leaves the folder.
        SandboxUnavailableError: It cannot be written, for example because the disk is full.
    """
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
            raise ConfigError(f"Files of a session need a path below its working directory, got {name!r}.")
    root = ""
    try:
        root = os.path.realpath(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        for folder in ("work", "tmp"):
            os.mkdir(os.path.join(root, folder), 0o700)
        for name, content in files.items():
            target = Path(root, "work", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except OSError as error:
        if root:
            remove_folder(root)
        raise SandboxUnavailableError(f"The session's folder cannot be written: {error}") from error
    return root


def _max_answer_bytes(limits: Limits) -> int:
    """Largest answer accepted: head and tail of the output, every byte written as six, and the other fields."""
    return 12 * int(limits.output_bytes) + (1 << 16)


def _to_result(answer: Mapping[str, Any], limits: Limits) -> ExecResult:
    """The answer of a supervisor as the result that callers see."""
    head, tail = (answer[part].encode("latin-1") for part in ("head", "tail"))
    notice = _notice(answer, limits)
    room = max(0, int(limits.output_bytes) - len(notice.encode()) - 1)
    clipped = clip_ends(head, tail, answer["num_bytes"], room)
    separator = "\n" if notice and clipped.text and not clipped.text.endswith("\n") else ""
    fields = ("status", "exit_code", "signal", "reason", "state", "cpu_s", "wall_s")
    return ExecResult(
        output=clipped.text + separator + notice,
        output_bytes=clipped.num_bytes,
        truncated=clipped.truncated,
        **{name: answer[name] for name in fields},
    )


def _notice(answer: Mapping[str, Any], limits: Limits) -> str:
    """One line for the model: why a cell was killed and what became of its names, or its exit code."""
    if answer["reason"] is None:
        return f"exit code {answer['exit_code']}\n" if answer["exit_code"] else ""
    reasons = {
        "cpu": f"{limits.cpu_s:g} s CPU limit",
        "wall": f"{limits.wall_s:g} s time limit",
        "memory": f"{limits.memory_mb} MB memory limit",
        "pids": f"limit of {limits.pids} processes and threads",
        "protocol": "the cell wrote to a file descriptor of the interpreter",
        "ended": "the interpreter had ended since the last cell",
    }
    cause = reasons.get(answer["reason"])
    if cause is None and answer["signal"] is not None:
        cause = f"the interpreter died by {signal.Signals(answer['signal']).name}"
    elif cause is None and answer["exit_code"] is not None:
        cause = f"the interpreter exited with code {answer['exit_code']}"
    elif cause is None:  # not our child: only Linux lets us adopt a checkpoint
        cause = "the interpreter ended"
    if answer["state"] == "reset":
        return f"killed: {cause}; all names are lost\n"
    return f"killed: {cause}; names from before this cell are kept\n"
