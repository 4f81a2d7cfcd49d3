"""The program inside every sandbox, its process 1 where there is isolation: it serves the host and never runs a cell.

It starts interpreters, gives one at a time a cell to run, keeps limits, kills what is left over after every cell, and
ends everything when the host hangs up, which is what the kernel does for a host that was killed.

One cell at a time: whatever process then exists besides the sleeping interpreters belongs to the cell that runs,
however it was started and whoever its parent is, and can be counted and killed without asking it anything.

Standard library only: the runner has this file without agentrl. `launch.py` says how it gets it.
"""

import binascii
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from agentrl.sandbox.runner.cell_watch import ANSWER_S, CellEnd, CellWatch, Children, Copy, nothing_printed
from agentrl.sandbox.runner.frames import FrameError, encode, pair, read_message
from agentrl.sandbox.runner.interpreter import Interpreter, set_dumpable
from agentrl.sandbox.runner.process_tree import (
    adopt_orphans,
    becomes_child,
    is_alive,
    kill_descendants,
    kill_group,
    kill_namespace,
    measure,
)
from agentrl.sandbox.runner.process_tree import send_signal as signal_process
from agentrl.sandbox.runner.session_files import list_files, read_file, write_file
from agentrl.sandbox.runner.session_folder import SessionFolders, empty_folder, remove_folder

_SHARED_MEMORY = "/dev/shm"
_MAX_ERROR_CHARS = 300
_KILL_S = 5.0
_NOT_KILLED = "processes of a cell cannot be killed"
"""Such a sandbox is not safe to go on with."""
_CONNECTION_ERRORS = (EOFError, FrameError, OSError)


class HostStream:
    """The attached stream: requests come on descriptor 0, answers go to descriptor 1.

    Both are moved to numbers that no cell expects, and the standard ones point to nowhere.
    """

    def __init__(self) -> None:
        self._in_fd, self._out_fd = os.dup(0), os.dup(1)  # not inherited by programs
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.close(null)

    def fileno(self) -> int:
        """The descriptor that requests come on."""
        return self._in_fd

    def receive(self) -> dict[str, Any]:
        """Waits for a request.

        Raises:
            EOFError: The host hung up.
            FrameError: What came is no message.
        """
        return read_message(lambda num_bytes: os.read(self._in_fd, num_bytes), max_bytes=sys.maxsize)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends an answer.

        Raises:
            OSError: The host hung up.
        """
        data = encode(message)
        while data:
            data = data[os.write(self._out_fd, data) :]


class _Session:
    def __init__(self, name: str, interpreter: Copy) -> None:
        self.name = name
        self.interpreter = interpreter


class Runner:
    """Serves one host until it hangs up.

    Args:
        host: The stream to it.
        config: `root`, `max_user_processes` (see `Started`) and the fields of `Limits`.
    """

    def __init__(self, host: HostStream, config: dict[str, Any]) -> None:
        self._host = host
        self._config = {**config, "counts_files": os.path.ismount(config["root"])}
        self._folders = SessionFolders(config["root"])
        self._sessions: dict[str, _Session] = {}
        self._children = Children()
        self._dying: set[int] = set()
        """Processes that were killed and not waited for: their end is not on the way of an answer."""

    def serve(self) -> NoReturn:
        """Answers requests until the host hangs up, then leaves nothing behind."""
        try:
            self._host.send({"op": "ready"})
            while True:
                request = self._host.receive()
                if request["op"] != "cancel":  # one that comes too late
                    self._serve_one(request)
        except (EOFError, BrokenPipeError):
            pass
        except BaseException:
            traceback.print_exc()  # the host quotes its last line
        finally:
            kill_descendants(os.getpid())
            remove_folder(self._config["root"])
            os._exit(0)

    def _serve_one(self, request: dict[str, Any]) -> None:
        """Answers a request; if that fails while a cell runs, the cell has brought it about, and the answer says so."""
        try:
            self._bury()
            answer = self._answer(request)
        except EOFError:
            raise
        except Exception:
            if request["op"] == "run":
                last = {**nothing_printed(), "status": "killed", "reason": "sandbox", "state": "reset"}
                self._host.send({"id": request["id"], **last})
            raise
        self._host.send({"id": request["id"], **answer})

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operations = {
            "open": self._open,
            "run": self._run,
            "fork": self._fork,
            "read": self._read,
            "write": self._write,
            "list": self._list,
            "close": self._close,
            "ping": self._ping,
        }
        try:
            return operations[request["op"]](request)
        except FileNotFoundError:
            error = "there is no such file"
        except (OSError, ValueError) as failure:  # ValueError: a path that no system takes
            error = getattr(failure, "strerror", None) or str(failure)
        if request["op"] == "run":  # cells have used up what a new one needs
            return self._start_afresh(self._sessions[request["session"]], new_folders=True)
        return {"error": error}

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["session"]
        self._folders.create(name)
        self._sessions[name] = _Session(name, self._start_interpreter())
        return {"error": None}

    def _start_interpreter(self) -> Copy:
        ours, theirs = pair()
        ours.takes_fds = False
        pid = os.fork()
        if pid:
            theirs.close()
            return Copy(ours, pid)
        try:
            os.closerange(3, theirs.fileno())  # the host's stream, and channels to other interpreters
            os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
            interpreter = Interpreter(theirs, self._config)
            interpreter.prepare()
            interpreter.serve()
        finally:
            os._exit(1)

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs one cell; the answer has the fields of `ExecResult`, and head and tail of the output."""
        session = self._sessions[request["session"]]
        self._folders.activate(session.name)
        self._children.reap()  # zombies count as processes
        self._children.forget()
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        try:
            order = {"op": "run", "code": request["code"], "number": request["number"], "cpu_s": self._config["cpu_s"]}
            before = measure([session.interpreter.pid])
            checkpoint = self._copy(session, order, [write_fd])
            os.close(write_fd)
            if checkpoint is None:
                return self._start_afresh(session)
            bystanders = [checkpoint.pid, *(pid for pid in self._sleeping() if pid != session.interpreter.pid)]
            watch = CellWatch(session.interpreter, before, bystanders, read_fd, self._config, self._children)
            end = watch.wait(request["number"], self._host.fileno(), lambda: self._is_cancelled(request["id"]))
            is_kept = self._clean_up(session, checkpoint, end)
            watch.output.read_rest(read_fd)
        finally:
            os.close(read_fd)
        answer = watch.describe(end)
        return answer if is_kept else {**answer, "state": self._start_afresh(session)["state"]}

    def _sleeping(self) -> list[int]:
        return [session.interpreter.pid for session in self._sessions.values()]

    def _is_cancelled(self, request_id: int) -> bool:
        """Reads what the host says while a cell runs, which can only be that it no longer wants it.

        Raises:
            EOFError: It hung up.
        """
        message = self._host.receive()
        return bool(message["op"] == "cancel" and message["id"] == request_id)

    def _copy(self, session: _Session, order: dict[str, Any], fds: list[int]) -> Copy | None:
        """Gives the interpreter an order that makes it copy itself first; None if there is no copy."""
        # As the first process this one stops all interpreters between cells, so that no thread of theirs runs on; and
        # elsewhere a cell may have stopped its checkpoint.
        signal_process(session.interpreter.pid, signal.SIGCONT)
        ours, theirs = pair()
        ours.takes_fds = False
        try:
            try:
                session.interpreter.channel.send(order, [*fds, theirs.fileno()], timeout_s=ANSWER_S)
            finally:
                theirs.close()
            pid: Any = ours.receive(ANSWER_S)[0].get("pid")
            if _is_own_child(pid) and pid not in self._sleeping():
                return Copy(ours, pid)
        except _CONNECTION_ERRORS:
            pass
        ours.close()
        return None

    def _start_afresh(self, session: _Session, *, new_folders: bool = False) -> dict[str, Any]:
        """Replaces an interpreter that has died or hangs between two cells, by a thread or signal of an earlier one."""
        self._stop(session.interpreter)
        self._kill_all_but([pid for pid in self._sleeping() if pid != session.interpreter.pid])
        self._bury()
        if new_folders:
            self._folders.remove(session.name)
            self._folders.create(session.name)
        session.interpreter = self._start_interpreter()
        return {**nothing_printed(), "status": "killed", "reason": "ended", "state": "reset"}

    def _clean_up(self, session: _Session, checkpoint: Copy, end: CellEnd) -> bool:
        """Leaves one process of the session, its interpreter from now on, and of the others theirs.

        Returns:
            Whether there is one: for its memory the kernel may have killed the checkpoint too.
        """
        keep, drop = (session.interpreter, checkpoint) if end.done else (checkpoint, session.interpreter)
        self._stop(drop)
        session.interpreter = keep
        self._kill_all_but(self._sleeping())
        if end.reason == "files":
            self._folders.empty(session.name)
            self._folders.sweep(self._sessions)
        if keep is checkpoint:
            try:
                keep.channel.send({"op": "resume"}, timeout_s=ANSWER_S)
            except OSError:
                return False
        return True

    def _kill_all_but(self, pids: list[int]) -> None:
        if os.getpid() == 1:
            self._dying |= kill_namespace(pids)
        elif not kill_descendants(os.getpid(), spare=pids, limit_s=_KILL_S):
            raise RuntimeError(_NOT_KILLED)
        self._dying -= self._children.reap()

    def _bury(self) -> None:
        """Waits for the end of what was killed: until then it holds memory and counts as a process."""
        deadline = time.monotonic() + _KILL_S
        while self._dying:
            self._dying -= self._children.reap()
            self._dying = set(filter(is_alive, self._dying))
            if time.monotonic() > deadline:
                raise RuntimeError(_NOT_KILLED)
            if self._dying:
                time.sleep(0.0001)

    def _stop(self, copy: Copy) -> None:
        """Kills an interpreter with its process group; its channel must not close before, as it would act on that."""
        kill_group(copy.pid)
        signal_process(copy.pid, signal.SIGKILL)
        copy.channel.close()

    def _fork(self, request: dict[str, Any]) -> dict[str, Any]:
        """Copies a session, which is then found under the name `twin`."""
        session, twin = self._sessions[request["session"]], request["twin"]
        most = self._config["max_user_processes"]
        if most is not None and len(self._sessions) >= most - 2 * self._config["pids"]:
            # One more could leave a cell without room for its checkpoint, and with that without its names.
            return {"error": f"{len(self._sessions)} sessions share this sandbox, which has room for no more"}
        copy = self._copy(session, {"op": "clone"}, [])
        if copy is None:
            return {"error": self._refusal(session)}
        source = self._folders.place(session.name)
        try:
            self._folders.copy(session.name, twin)
            order = {"op": "move", "source": source, "target": self._folders.place(twin)}
            copy.channel.send(order, timeout_s=ANSWER_S)
            error = copy.channel.receive(ANSWER_S)[0].get("error", "")
        except _CONNECTION_ERRORS as failure:
            error = str(failure)
        if error is not None:
            self._stop(copy)
            self._folders.remove(twin)
            self._kill_all_but(self._sleeping())
            return {"error": f"the copy failed: {str(error)[:_MAX_ERROR_CHARS]}"}
        self._sessions[twin] = _Session(twin, copy)
        self._kill_all_but(self._sleeping())
        return {"error": None}

    def _refusal(self, session: _Session) -> str:
        """Why the interpreter has hung up on its copy instead of making it."""
        try:
            return str(session.interpreter.channel.receive(ANSWER_S)[0]["error"])[:_MAX_ERROR_CHARS]
        except (*_CONNECTION_ERRORS, KeyError):
            return "the interpreter has ended"

    def _read(self, request: dict[str, Any]) -> dict[str, Any]:
        place = self._folders.place(self._sessions[request["session"]].name)
        data, size = read_file(f"{place}/work", request["path"], request["offset"])
        return {"error": None, "data": binascii.b2a_base64(data, newline=False).decode(), "size": size}

    def _write(self, request: dict[str, Any]) -> dict[str, Any]:
        place = self._folders.place(self._sessions[request["session"]].name)
        write_file(f"{place}/work", request["path"], binascii.a2b_base64(request["data"]), append=request["append"])
        return {"error": None}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        place = self._folders.place(self._sessions[request["session"]].name)
        return {"error": None, "paths": list_files(f"{place}/work")}

    def _ping(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"error": None}

    def _close(self, request: dict[str, Any]) -> dict[str, Any]:
        session = self._sessions.pop(request["session"])
        self._stop(session.interpreter)
        self._kill_all_but(self._sleeping())
        self._folders.remove(session.name)
        self._folders.sweep(self._sessions)
        if os.getpid() == 1 and not self._sessions and not os.path.islink(_SHARED_MEMORY):
            empty_folder(_SHARED_MEMORY)
        return {"error": None}


def _is_own_child(pid: Any) -> bool:
    """Whether an interpreter's word for the process id of its copy can be true: cells can make it say anything."""
    if type(pid) is not int or not 2 <= pid < 1 << 22 or pid == os.getpid():
        return False
    return becomes_child(pid, limit_s=ANSWER_S)


def main() -> NoReturn:
    """Serves the host on the standard streams."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # of which the first process of a namespace takes no notice
    set_dumpable(False)  # cells have the same user id, and may not look into this process
    adopt_orphans(True)
    host = HostStream()
    config = host.receive()
    sys.argv = [""]
    Runner(host, config).serve()
