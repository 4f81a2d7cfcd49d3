"""Watching one cell while it runs: its output is drained, its limits are kept, its end is told apart from its death.

Standard library only: the runner has this file without agentrl.
"""

import os
import select
import signal
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from agentrl.sandbox.runner.frames import Channel, FrameError
from agentrl.sandbox.runner.output import OutputBuffer
from agentrl.sandbox.runner.process_tree import Usage, descendants, exists, measure, proportional_bytes, reap

ANSWER_S = 20.0
"""An interpreter between two cells answers in milliseconds, unless a thread of an earlier cell keeps it from it."""
_TICK_S = 0.02


class Copy(NamedTuple):
    """An interpreter process (also a sleeping one) and the channel that it listens to."""

    channel: Channel
    pid: int


class CellEnd(NamedTuple):
    """How a cell ended: it was done, something ended it (`reason`), or its process died."""

    done: dict[str, Any] | None = None
    reason: str | None = None
    wait_status: int | None = None


class Children:
    """What the kernel tells of processes that have ended below this one."""

    def __init__(self) -> None:
        self.wait_statuses: dict[int, int] = {}
        self.cpu_s = 0.0

    def forget(self) -> None:
        """Begins anew: process ids are used again."""
        self.wait_statuses.clear()
        self.cpu_s = 0.0

    def reap(self) -> set[int]:
        """Takes in all that have ended; their process ids may be given to others from now on."""
        ended = reap()
        for pid, (status, cpu_s) in ended.items():
            self.wait_statuses[pid] = status
            self.cpu_s += cpu_s
        return set(ended)

    def is_gone(self, pid: int) -> bool:
        """Whether a process has ended."""
        self.reap()
        return pid in self.wait_statuses or not exists(pid)


class CellWatch:
    """One cell from its beginning to its end.

    Args:
        interpreter: Runs the cell.
        before: What it had used before.
        bystanders: Process ids that are not the cell's: its checkpoint, and the interpreters of other sessions.
        output_fd: Non-blocking end of the pipe that the cell writes to.
        limits: The fields of `Limits`; `root`, and whether the files in it can be counted (`counts_files`).
        children: Of this process.
    """

    def __init__(
        self,
        interpreter: Copy,
        before: Usage,
        bystanders: Collection[int],
        output_fd: int,
        limits: Mapping[str, Any],
        children: Children,
    ) -> None:
        self._interpreter = interpreter
        self._bystanders = bystanders
        self._output_fd = output_fd
        self._limits = limits
        self._children = children
        self.output = OutputBuffer(limits["output_bytes"])
        self._cpu_s = 0.0
        self._before = before
        self._begun = self._checked = 0.0
        self._hung_up = False

    def wait(self, number: int, host_fd: int, is_cancelled: Callable[[], bool]) -> CellEnd:
        """Lets cell `number` begin, now that its checkpoint is safe, and waits for its end.

        Args:
            number: Of the cell, which its interpreter reports back.
            host_fd: Readable when the host says something.
            is_cancelled: Reads what the host said; may raise EOFError.

        Raises:
            EOFError: The host hung up.
        """
        channel = self._interpreter.channel
        self._begun = self._checked = monotonic()
        with suppress(OSError):  # it has died: the channel says so below
            channel.send({"op": "go"}, timeout_s=ANSWER_S)
        nonce = os.urandom(8).hex()
        done: dict[str, Any] | None = None
        poll = select.poll()
        for fd in (host_fd, channel.fileno(), self._output_fd):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(1 if self._hung_up else _TICK_S * 1000):
                if fd == host_fd and is_cancelled():
                    return CellEnd(reason="cancelled")
                if fd == self._output_fd and not self.output.read_from(fd):
                    poll.unregister(fd)
                if fd == channel.fileno():
                    try:
                        message = channel.receive_now()
                        if message is None:
                            continue
                        if done is None:
                            done = _checked_done(message, number)
                            channel.send({"op": "settle", "nonce": nonce}, timeout_s=ANSWER_S)
                        elif message == {"op": "settled", "nonce": nonce}:
                            return CellEnd(done=done)
                        else:
                            return CellEnd(reason="protocol")
                    except FrameError:
                        return CellEnd(reason="protocol")
                    except (EOFError, OSError):  # it died, or runs on as another program
                        self._hung_up = True
                        poll.unregister(fd)
            if self._hung_up and self._children.is_gone(self._interpreter.pid):
                return CellEnd(reason="died", wait_status=self._children.wait_statuses.get(self._interpreter.pid))
            if monotonic() - self._checked >= _TICK_S:
                if reason := self._passed_limit():
                    return CellEnd(reason=reason)
                self._checked = monotonic()

    def _passed_limit(self) -> str | None:
        """The limit that the cell is beyond, or None."""
        if monotonic() - self._begun > self._limits["wall_s"]:
            return "wall"
        self._children.reap()
        pids = descendants(os.getpid(), prune=self._bystanders)
        usage = measure(pids)
        self._cpu_s = usage.cpu_s - self._before.cpu_s + self._children.cpu_s
        memory = self._limits["memory_mb"] * (1 << 20)
        if self._cpu_s > self._limits["cpu_s"]:
            return "cpu"
        if usage.num_tasks - self._before.num_tasks > self._limits["pids"]:
            return "pids"
        if self._limits["counts_files"] and _used_inodes(self._limits["root"]) > self._limits["inodes"]:
            return "files"
        if usage.resident_bytes > memory and proportional_bytes(pids) > memory:
            return "memory"
        return None

    def describe(self, end: CellEnd) -> dict[str, Any]:
        """The answer to the host: the fields of `ExecResult`, and head and tail of the output."""
        answer: dict[str, Any] = {
            **nothing_printed(),
            "head": self.output.head,
            "tail": self.output.tail,
            "num_bytes": self.output.num_bytes,
            "reason": end.reason,
            "cpu_s": self._cpu_s,
            "wall_s": monotonic() - self._begun,
        }
        if end.done:
            status = "ok" if end.done["succeeded"] else "error"
            usage = {"exit_code": end.done["exit_code"], "cpu_s": end.done["cpu_s"]}
            return {**answer, **usage, "status": status, "state": "kept"}
        if end.wait_status is not None:
            code = os.waitstatus_to_exitcode(end.wait_status)
            answer["signal" if code < 0 else "exit_code"] = abs(code)
            if code == -signal.SIGXCPU:
                answer["reason"] = "cpu"
        status = "timeout" if answer["reason"] in ("cpu", "wall") else "killed"
        return {**answer, "status": status, "state": "rolled_back"}


def _used_inodes(root: str) -> int:
    try:
        status = os.statvfs(root)
    except OSError:
        return 0
    return status.f_files - status.f_ffree


def nothing_printed() -> dict[str, Any]:
    """The answer's fields for a cell that never ran."""
    return {"head": "", "tail": "", "num_bytes": 0, "exit_code": None, "signal": None, "cpu_s": 0.0, "wall_s": 0.0}


def _checked_done(message: dict[str, Any], number: int) -> dict[str, Any]:
    """The message that cell `number` is done.

    A cell can send one too, so it is believed only if the interpreter then answers a question; until it does, the cell
    runs on and its limits count.

    Raises:
        FrameError: It is anything else.
    """
    if message.get("op") != "done" or message.get("number") != number:
        raise FrameError("this is not the end of the present cell")
    cpu_s, exit_code = message.get("cpu_s"), message.get("exit_code")
    if not isinstance(message.get("succeeded"), bool) or type(cpu_s) is not float or not 0 <= cpu_s < 1e9:
        raise FrameError("the end of a cell lacks what it should say")
    if exit_code is not None and not (type(exit_code) is int and 0 <= exit_code <= 255):
        raise FrameError("an exit code must be a byte")
    return message
