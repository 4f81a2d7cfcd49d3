"""The process that holds a session's names: it runs cells and copies itself by `fork`.

Every cell starts with a copy, the checkpoint, which sleeps until the runner either kills it (the cell went well) or
speaks to it (the cell was killed, and the checkpoint is the interpreter from now on). The interpreter of a forked
session is the same kind of copy, moved to a folder of its own.
Standard library only: the runner has this file without agentrl.
"""

import ctypes
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

from agentrl.sandbox.runner.cells import Namespace, StandardStreams
from agentrl.sandbox.runner.cloning import clone_sibling
from agentrl.sandbox.runner.frames import Channel, FrameError
from agentrl.sandbox.runner.open_files import find_obstacle, split_files
from agentrl.sandbox.runner.process_tree import adopt_orphans, kill_group

_PR_SET_DUMPABLE = 4
_ASLEEP_OOM_SCORE, _AWAKE_OOM_SCORE = 500, 1000
"""When memory runs out, the kernel shall take what runs a cell, then what sleeps, and neither runner nor trainer."""


class Interpreter:
    """Serves its runner until that hangs up.

    Args:
        channel: To the runner.
        config: `root` (the folder that holds `work` and `tmp`), the limits, and `max_user_processes`.
    """

    def __init__(self, channel: Channel, config: Mapping[str, Any]) -> None:
        self._channel = channel
        self._channel.max_bytes = sys.maxsize  # the runner can be trusted, and code may be long
        self._config = dict(config)
        self._namespace = Namespace()
        self._cpu_hard_limit = 0
        self._group_to_kill: int | None = None
        """Of a checkpoint: the process group that runs the cell it guards."""

    def prepare(self) -> None:
        """Makes this process, just forked off the runner, the one that runs the session's cells."""
        os.setsid()
        _enter_folder(self._config["root"])
        sys.path.insert(0, "")  # a cell can import a file that it wrote
        sys.argv = [""]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _set_oom_score(_ASLEEP_OOM_SCORE)
        for kind, value in _resource_limits(self._config):
            with suppress(OSError, ValueError):  # above the hard limit in force, or not known to this system
                resource.setrlimit(kind, (value, value))
        self._cpu_hard_limit = _cpu_hard_limit()
        gc.freeze()  # later forks then share these pages for good

    def serve(self) -> NoReturn:
        """Answers requests; ends this process when the runner is gone."""
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
        if self._group_to_kill is not None:  # the runner was killed in the middle of a cell
            kill_group(self._group_to_kill)
        os._exit(0)

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        if message["op"] == "run":
            output_fd, checkpoint_fd = fds
            self._require_time()
            if self._clone(checkpoint_fd):
                os.close(output_fd)
                return
            streams = _prepare_cell(message, output_fd)  # while the copy begins to live
            self._channel.receive()  # the word to go: a cell may kill whatever it finds, and shall not find half a copy
            self._run(message, streams)
        elif message["op"] == "resume":
            self._group_to_kill = None
        elif message["op"] == "settle":
            self._channel.send({"op": "settled", "nonce": message["nonce"]})
        elif message["op"] == "clone":
            obstacle = self._find_obstacle({self._channel.fileno(), *fds})
            if obstacle is not None:
                os.close(fds[0])
                self._channel.send({"op": "failed", "error": obstacle})
            elif self._clone(fds[0]):
                self._group_to_kill = None
        elif message["op"] == "move":
            self._move(message["source"], message["target"])

    def _require_time(self) -> None:
        """Raises `OSError` if a cell has lowered what no process can raise again: no copy could run a cell either."""
        if _cpu_hard_limit() != self._cpu_hard_limit:
            raise OSError("the interpreter has cut its own CPU time")

    def _find_obstacle(self, own_fds: set[int]) -> str | None:
        try:
            return find_obstacle(own_fds)
        except Exception as error:  # a cell may have put anything in the place of a standard module
            return f"its state cannot be examined ({error})"

    def _run(self, message: dict[str, Any], streams: StandardStreams) -> None:
        pid = os.getpid()
        cpu_before = _cpu_s()
        outcome = self._namespace.run(message["code"], message["number"], streams)
        _cancel_timers()
        streams.detach()
        _set_oom_score(_ASLEEP_OOM_SCORE)
        set_dumpable(False)
        if os.getpid() != pid:
            os._exit(0)  # a child that the cell forked and that ran to the end of the cell
        done = {"op": "done", "number": message["number"], "succeeded": outcome.succeeded}
        self._channel.send({**done, "exit_code": outcome.exit_code, "cpu_s": _cpu_s() - cpu_before})

    def _clone(self, fd: int) -> bool:
        """Copies this process; True in the copy, which listens on `fd` and is nobody's child but the runner's."""
        group = os.getpgrp()
        random_state = _random_state()
        if clone_sibling():
            os.close(fd)
            return False
        os.setsid()  # before the cell begins: killing its process group must never kill its checkpoint
        self._channel.close()
        self._channel = Channel.adopt(fd, max_bytes=sys.maxsize)
        self._group_to_kill = group
        _restore_random_state(random_state)
        self._channel.send({"op": "ready", "pid": os.getpid()})
        return True

    def _move(self, source: str, target: str) -> None:
        """Makes this copy independent of its original: open files and current directory become those of its folder.

        Args:
            source: Where the folder of the original lies now.
            target: Where its copy lies now.
        """
        error = None
        try:
            inside = os.path.relpath(os.getcwd(), source)
            split_files({self._channel.fileno()}, source, target)
            if not inside.startswith(".."):
                os.chdir(os.path.join(target, inside))
        except OSError as failure:
            error = str(failure)
        self._channel.send({"op": "moved", "error": error})


def _prepare_cell(message: dict[str, Any], output_fd: int) -> StandardStreams:
    """Makes this process one that a cell may run in."""
    _limit_cpu(message["cpu_s"])
    adopt_orphans(False)  # they are the runner's to wait for, whatever an earlier cell has asked for
    set_dumpable(True)  # its memory is the cell's own; while it sleeps, no fork of the session may look into it
    _set_oom_score(_AWAKE_OOM_SCORE)
    return StandardStreams(output_fd)


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may trace this one and look into /proc/PID; without effect off Linux."""
    with suppress(OSError, AttributeError):
        ctypes.pythonapi.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def _enter_folder(root: str) -> None:
    os.chdir(os.path.join(root, "work"))
    os.environ["HOME"] = os.path.join(root, "work")
    os.environ["TMPDIR"] = os.path.join(root, "tmp")


def _resource_limits(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    mb = 1 << 20
    limits = [
        (resource.RLIMIT_AS, config["memory_mb"] * mb),
        (resource.RLIMIT_FSIZE, config["file_mb"] * mb),
        (resource.RLIMIT_NOFILE, config["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ]
    if config["max_user_processes"] is not None:
        limits.append((resource.RLIMIT_NPROC, config["max_user_processes"]))
    return [(kind, int(value)) for kind, value in limits]


def _limit_cpu(cpu_s: float) -> None:
    """The kernel's own limit behind the runner's: at least a second later, and the only one off Linux."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + cpu_s) + 2, _cpu_hard_limit()))


def _cpu_hard_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_CPU)[1]


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
    with suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, str(score).encode())
        finally:
            os.close(fd)
