"""The program of a sandbox worker: a supervisor that never runs a cell itself, above the interpreter that does.

It stands between host and interpreter: it takes requests, keeps time, CPU, memory and processes within limits, drains
the output, kills what is left over after every cell, and ends everything when the host hangs up, which is what the
kernel does for a host that was killed. Standard library only; started as `python worker.py FD ...` (see `main`).
"""

import os
import select
import signal
import sys
import traceback
import types
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NoReturn

if __name__ == "__main__":
    # Makes `agentrl.sandbox` this folder without running the packages' __init__, or needing agentrl installed.
    for _name, _path in (("agentrl", []), ("agentrl.sandbox", [os.path.dirname(os.path.abspath(__file__))])):
        sys.modules[_name] = types.ModuleType(_name)
        sys.modules[_name].__path__ = _path

from agentrl.sandbox.frames import Channel, FrameError, pair
from agentrl.sandbox.interpreter import Interpreter
from agentrl.sandbox.output import OutputBuffer
from agentrl.sandbox.process_tree import (
    Usage,
    become_subreaper,
    descendants,
    exists,
    kill_descendants,
    kill_group,
    measure,
    proportional_bytes,
    reap,
    send_signal,
)
from agentrl.sandbox.session_folder import copy_folder, remove_folder

_TICK_S = 0.02
_ANSWER_S = 60.0
"""An interpreter between two cells answers in milliseconds. The host loses patience before this, so that a machine that
hangs is an infrastructure failure and not the cell's."""
_CONNECTION_ERRORS = (EOFError, FrameError, OSError)


@dataclass(frozen=True, slots=True)
class _Copy:
    """An interpreter process (also a sleeping one) and the channel that it listens to."""

    channel: Channel
    pid: int


@dataclass(slots=True)
class _Cell:
    """A cell while it runs."""

    checkpoint: _Copy
    output_fd: int
    output: OutputBuffer
    before: Usage
    begun: float
    checked: float = field(default_factory=monotonic)
    cpu_s: float = 0.0
    hung_up: bool = False


@dataclass(frozen=True, slots=True)
class _End:
    """How a cell ended: it was done, a limit was passed, or its process died."""

    done: dict[str, Any] | None = None
    reason: str | None = None
    wait_status: int | None = None


class Supervisor:
    """Serves one host until it hangs up.

    Args:
        host: Channel to the host.
        config: `root` (the session's directory) and the fields of `Limits`.
        interpreter: The process to supervise; None starts one.
    """

    def __init__(self, host: Channel, config: dict[str, Any], interpreter: _Copy | None) -> None:
        self._host = host
        self._config = config
        self._interpreter = interpreter or self._start_interpreter()
        self._forks: set[int] = set()
        """Supervisors of forked sessions: our children by descent, none of our business otherwise."""
        self._wait_statuses: dict[int, int] = {}
        self._orphans_cpu_s = 0.0

    def serve(self) -> NoReturn:
        """Answers requests until the host hangs up, then leaves nothing behind."""
        try:
            self._host.send({"op": "ready"})
            while True:
                request, fds = self._host.receive()
                answer = self._run(request) if request["op"] == "run" else self._fork(request["root"], fds[0])
                self._host.send({"id": request["id"], **answer})
        except EOFError:
            pass
        except BaseException:
            traceback.print_exc()  # the host quotes its last line
        finally:
            kill_group(self._interpreter.pid)
            kill_descendants(os.getpid(), prune=self._forks)
            remove_folder(self._config["root"])
            os._exit(0)

    def _start_interpreter(self) -> _Copy:
        ours, theirs = pair()
        pid = os.fork()
        if pid:
            theirs.close()
            return _Copy(ours, pid)
        try:
            self._host.close()
            ours.close()
            interpreter = Interpreter(theirs, self._config)
            interpreter.prepare()
            interpreter.serve()
        finally:
            os._exit(1)

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one cell; the answer has the fields of `ExecResult`, and head and tail of the output."""
        self._wait_statuses.clear()
        self._orphans_cpu_s = 0.0
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        begun = monotonic()
        before = measure(descendants(os.getpid(), prune=self._forks))  # now, as the cell does not wait for us
        order = {"op": "run", "code": request["code"], "number": request["id"], "cpu_s": self._config["cpu_s"]}
        try:
            checkpoint = self._send_with_new_channel(order, [write_fd])
        except _CONNECTION_ERRORS:
            os.close(read_fd)
            return self._replace_interpreter()
        finally:
            os.close(write_fd)
        cell = _Cell(checkpoint, read_fd, OutputBuffer(self._config["output_bytes"]), before, begun)
        try:
            end = self._watch(cell, request["id"])
            self._clean_up(cell, keep=self._interpreter if end.done else checkpoint)
        finally:
            os.close(read_fd)
        return self._describe(cell, end)

    def _send_with_new_channel(self, order: dict[str, Any], fds: list[int]) -> _Copy:
        """Gives the interpreter an order that makes it copy itself, and waits for the copy."""
        ours, theirs = pair()
        try:
            try:
                self._interpreter.channel.send(order, [*fds, theirs.fileno()], timeout_s=_ANSWER_S)
            finally:
                theirs.close()
            ready, _ = ours.receive(_ANSWER_S)
        except BaseException:
            ours.close()
            raise
        return _Copy(ours, ready["pid"])

    def _replace_interpreter(self) -> dict[str, Any]:
        """The interpreter died between two cells, by a thread or a signal of an earlier cell: start afresh."""
        self._stop(self._interpreter)
        if not kill_descendants(os.getpid(), prune=self._forks):
            raise OSError("processes of the cell cannot be killed")
        self._reap()
        self._interpreter = self._start_interpreter()
        nothing = {"head": "", "tail": "", "num_bytes": 0, "exit_code": None, "signal": None, "cpu_s": 0.0}
        return {**nothing, "status": "killed", "reason": "ended", "state": "reset", "wall_s": 0.0}

    def _watch(self, cell: _Cell, number: int) -> _End:
        """Waits for the end of a cell while its output is drained and its limits are kept.

        Raises:
            EOFError: The host hung up.
        """
        channel = self._interpreter.channel
        poll = select.poll()
        for fd in (self._host.fileno(), channel.fileno(), cell.output_fd):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(1 if cell.hung_up else _TICK_S * 1000):
                if fd == self._host.fileno():
                    raise EOFError("the host hung up")
                if fd == cell.output_fd and not cell.output.read_from(fd):
                    poll.unregister(fd)
                if fd == channel.fileno():
                    try:
                        return _End(done=_receive_done(channel, number))
                    except FrameError:
                        return _End(reason="protocol")
                    except (EOFError, OSError):  # it died, or runs on as another program
                        cell.hung_up = True
                        poll.unregister(fd)
            if cell.hung_up and self._is_gone(self._interpreter.pid):
                return _End(reason="died", wait_status=self._wait_statuses.get(self._interpreter.pid))
            if monotonic() - cell.checked >= _TICK_S:
                if reason := self._passed_limit(cell):
                    return _End(reason=reason)
                cell.checked = monotonic()

    def _passed_limit(self, cell: _Cell) -> str | None:
        """The limit that a running cell is beyond, or None."""
        if monotonic() - cell.begun > self._config["wall_s"]:
            return "wall"
        self._reap()
        pids = descendants(os.getpid(), prune=[cell.checkpoint.pid, *self._forks])
        usage = measure(pids)
        cell.cpu_s = usage.cpu_s - cell.before.cpu_s + self._orphans_cpu_s
        memory = self._config["memory_mb"] * (1 << 20)
        if cell.cpu_s > self._config["cpu_s"]:
            return "cpu"
        if usage.num_tasks - cell.before.num_tasks > self._config["pids"]:
            return "pids"
        if usage.resident_bytes > memory and proportional_bytes(pids) > memory:
            return "memory"
        return None

    def _clean_up(self, cell: _Cell, keep: _Copy) -> None:
        """Kills all processes of the session but one, which is its interpreter from now on.

        Raises:
            OSError: Something cannot be killed; this ends the session.
        """
        drop = cell.checkpoint if keep is self._interpreter else self._interpreter
        self._stop(drop)
        if not kill_descendants(os.getpid(), spare=[keep.pid], prune=self._forks):
            raise OSError("processes of the cell cannot be killed")
        self._reap()
        if keep is cell.checkpoint:
            keep.channel.send({"op": "resume"}, timeout_s=_ANSWER_S)
        self._interpreter = keep
        cell.output.read_rest(cell.output_fd)

    def _stop(self, copy: _Copy) -> None:
        """Kills an interpreter with its process group; its channel must not close before, as it would act on that."""
        kill_group(copy.pid)
        send_signal(copy.pid, signal.SIGKILL)
        copy.channel.close()

    def _describe(self, cell: _Cell, end: _End) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "head": cell.output.head,
            "tail": cell.output.tail,
            "num_bytes": cell.output.num_bytes,
            "reason": end.reason,
            "exit_code": None,
            "signal": None,
            "cpu_s": cell.cpu_s,
            "wall_s": monotonic() - cell.begun,
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

    def _fork(self, root: str, host_fd: int) -> dict[str, Any]:
        """Copies the session into `root` under a supervisor of its own, which serves the host on `host_fd`."""
        try:
            copy = self._send_with_new_channel({"op": "clone"}, [])
        except _CONNECTION_ERRORS:
            os.close(host_fd)
            return {"error": self._refusal()}
        try:
            copy_folder(self._config["root"], root)
            copy.channel.send({"op": "move", "root": root}, [host_fd], timeout_s=_ANSWER_S)
            moved, _ = copy.channel.receive(_ANSWER_S)
        except _CONNECTION_ERRORS as error:
            return {"error": f"the copy failed: {error}"}
        finally:
            os.close(host_fd)
            copy.channel.close()
        if moved["error"] is None:
            self._forks.add(copy.pid)
        return {"error": moved["error"], "pid": copy.pid}

    def _refusal(self) -> str:
        """Why the interpreter has hung up on its copy instead of making it."""
        try:
            return str(self._interpreter.channel.receive(_ANSWER_S)[0]["error"])
        except _CONNECTION_ERRORS:
            return "the interpreter has ended"

    def _is_gone(self, pid: int) -> bool:
        self._reap()
        return pid in self._wait_statuses or not exists(pid)

    def _reap(self) -> None:
        for pid, (status, cpu_s) in reap().items():
            if pid in self._forks:
                self._forks.remove(pid)
            else:
                self._wait_statuses[pid] = status
                self._orphans_cpu_s += cpu_s


def _receive_done(channel: Channel, number: int) -> dict[str, Any]:
    """The interpreter's message that cell `number` is done.

    Raises:
        FrameError: It sent anything else.
        EOFError: It hung up; so may OSError say.
    """
    message, _ = channel.receive(_ANSWER_S)
    if message.get("op") != "done" or message.get("number") != number:
        raise FrameError("this is not the end of the present cell")
    return message


def main(arguments: list[str]) -> NoReturn:
    """Serves the host on a descriptor.

    Args:
        arguments: Descriptor of the channel to the host; of a forked session also the descriptor of the channel to the
            interpreter, and its process id.
    """
    host = Channel.adopt(int(arguments[0]), max_bytes=sys.maxsize)
    become_subreaper()
    config, _ = host.receive()
    inherited = _Copy(Channel.adopt(int(arguments[1])), int(arguments[2])) if len(arguments) > 1 else None
    for name in [name for name in sys.modules if name.split(".")[0] == "agentrl"]:
        del sys.modules[name]  # a cell that imports agentrl shall get the real one, or none
    Supervisor(host, config, inherited).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
