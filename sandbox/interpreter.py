"""The process that holds a session's names: it runs cells and copies itself by `fork`.

Every cell starts with a copy, the checkpoint, which sleeps until the supervisor either kills it (the cell went well)
or speaks to it (the cell was killed, and the checkpoint is the interpreter from now on). `Session.fork` is the same
copy, moved under a supervisor of its own.
Standard library only: the worker runs this file without agentrl.
"""

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from agentrl.sandbox.cells import Namespace, StandardStreams
from agentrl.sandbox.frames import Channel, FrameError, pair
from agentrl.sandbox.launch import worker_command, worker_environment
from agentrl.sandbox.open_files import find_obstacle, split_files
from agentrl.sandbox.process_tree import kill_group

_OOM_SCORE = 800  # when memory runs out, the kernel shall take this process and not the trainer


class Interpreter:
    """Serves its supervisor until that hangs up.

    Args:
        channel: To the supervisor.
        config: `root` (the session's directory) and the session's limits, as the host sent them.
    """

    def __init__(self, channel: Channel, config: Mapping[str, Any]) -> None:
        self._channel = channel
        self._config = dict(config)
        self._namespace = Namespace()
        self._group_to_kill: int | None = None
        """Of a checkpoint: the process group that runs the cell it guards."""

    def prepare(self) -> None:
        """Makes this process, just forked off the supervisor, the one that runs the session's cells."""
        os.setsid()
        enter_directory(self._config["root"])
        sys.path.insert(0, "")  # a cell can import a file that it wrote
        sys.argv = [""]
        _set_oom_score(_OOM_SCORE)
        mb = 1 << 20
        for kind, value in (
            (resource.RLIMIT_AS, self._config["memory_mb"] * mb),
            (resource.RLIMIT_FSIZE, self._config["file_mb"] * mb),
            (resource.RLIMIT_NOFILE, self._config["open_files"]),
            (resource.RLIMIT_CORE, 0),
        ):
            with suppress(OSError, ValueError):  # above the hard limit already in force, or not enforced by this system
                resource.setrlimit(kind, (int(value), int(value)))
        gc.freeze()  # later forks then share these pages for good

    def serve(self) -> NoReturn:
        """Answers requests; ends this process when the supervisor is gone."""
        while True:
            try:
                message, fds = self._channel.receive()
            except (EOFError, OSError, FrameError):
                break
            try:
                self._answer(message, fds)
            except OSError as error:  # fork failed, or the cell closed our descriptors
                for fd in fds:
                    with suppress(OSError):
                        os.close(fd)
                with suppress(OSError):
                    self._channel.send({"op": "failed", "error": str(error)})
        if self._group_to_kill is not None:  # the supervisor was killed in the middle of a cell
            kill_group(self._group_to_kill)
        os._exit(0)

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        if message["op"] == "run":
            output_fd, checkpoint_fd = fds
            if self._clone(checkpoint_fd):
                os.close(output_fd)
                return
            self._run(message, output_fd)
        elif message["op"] == "resume":
            self._group_to_kill = None
        elif message["op"] == "clone":
            obstacle = self._find_obstacle({self._channel.fileno(), *fds})
            if obstacle is not None:
                os.close(fds[0])
                self._channel.send({"op": "failed", "error": obstacle})
            elif self._clone(fds[0]):
                self._group_to_kill = None
        elif message["op"] == "move":
            self._move(message["root"], fds[0])

    def _find_obstacle(self, own_fds: set[int]) -> str | None:
        try:
            return find_obstacle(own_fds)
        except Exception as error:  # a cell may have put anything in the place of a standard module
            return f"its state cannot be examined ({error})"

    def _run(self, message: dict[str, Any], output_fd: int) -> None:
        pid = os.getpid()
        cpu_before = _cpu_s()
        _limit_cpu(message["cpu_s"])
        streams = StandardStreams(output_fd)
        outcome = self._namespace.run(message["code"], message["number"], streams)
        _cancel_timers()
        streams.detach()
        if os.getpid() != pid:
            os._exit(0)  # a child that the cell forked and that ran to the end of the cell
        done = {"op": "done", "number": message["number"], "succeeded": outcome.succeeded}
        self._channel.send({**done, "exit_code": outcome.exit_code, "cpu_s": _cpu_s() - cpu_before})

    def _clone(self, fd: int) -> bool:
        """Copies this process; True in the copy, which listens on `fd` and is nobody's child but the supervisor's.

        The double fork lets the copy be adopted by the supervisor, so that `os.wait()` in a cell never meets it.
        """
        group = os.getpgrp()
        random_state = _random_state()
        middle = os.fork()
        if middle:
            os.close(fd)
            with suppress(ChildProcessError):  # the cell ignores SIGCHLD
                os.waitpid(middle, 0)
            return False
        try:
            os.setsid()  # before the cell begins: killing its process group must never kill its checkpoint
            if os.fork():
                os._exit(0)
        except OSError:
            os._exit(1)
        os.setpgid(0, 0)
        self._channel.close()
        self._channel = Channel.adopt(fd)
        self._group_to_kill = group
        _restore_random_state(random_state)
        self._channel.send({"op": "ready", "pid": os.getpid()})
        return True

    def _move(self, root: str, host_fd: int) -> None:
        """Goes to another directory and under a new supervisor, which this process becomes after one more fork."""
        try:
            split_files({self._channel.fileno(), host_fd}, self._config["root"], root)
            inside = os.path.relpath(os.getcwd(), self._config["root"])
            enter_directory(root, inside)
        except OSError as error:
            self._channel.send({"op": "moved", "error": str(error)})
            os._exit(1)
        self._config["root"] = root
        to_interpreter, to_supervisor = pair()
        random_state = _random_state()
        child = os.fork()
        if child:
            self._channel.send({"op": "moved", "error": None})
            become_supervisor(host_fd, to_interpreter.detach(), child)
        os.setsid()
        os.close(host_fd)
        to_interpreter.close()
        self._channel.close()
        self._channel = to_supervisor
        _restore_random_state(random_state)


def enter_directory(root: str, inside: str = "work") -> None:
    """Makes a directory below the session's root the current one, and its temporary folder the default.

    Args:
        root: The session's directory, with the folders `work` and `tmp`.
        inside: Where to go, relative to the root; a place outside of it is left as it is.
    """
    if not inside.startswith(".."):
        os.chdir(os.path.join(root, inside))
    os.environ["HOME"] = os.path.join(root, "work")
    os.environ["TMPDIR"] = os.path.join(root, "tmp")
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None  # it remembers the folder of its first use


def become_supervisor(host_fd: int, interpreter_fd: int, interpreter_pid: int) -> NoReturn:
    """Replaces this process, whose memory cells have written to, by a clean supervisor that keeps its children."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    _set_oom_score(0)
    for fd in (host_fd, interpreter_fd):
        os.set_inheritable(fd, True)
    command = worker_command(host_fd, interpreter_fd, interpreter_pid)
    os.execve(command[0], command, worker_environment())


def _limit_cpu(cpu_s: float) -> None:
    """The kernel's own limit behind the supervisor's: at least a second later, and the only one off Linux."""
    with suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + cpu_s) + 2, hard))


def _cancel_timers() -> None:
    """A cell's alarm must not ring in the code that waits for the next cell."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)


def _cpu_s() -> float:
    """CPU seconds of this process and of its children that it waited for."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _random_state() -> Any:
    """State of the module `random`, which reseeds itself in forked processes; a checkpoint must not."""
    with suppress(Exception):  # a file random.py of the session may have taken its place
        return sys.modules["random"].getstate()
    return None


def _restore_random_state(state: Any) -> None:
    if state is not None:
        with suppress(Exception):
            sys.modules["random"].setstate(state)


def _set_oom_score(score: int) -> None:
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(score))
