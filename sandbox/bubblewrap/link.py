"""Starting one sandbox with bubblewrap, and ending it.

There are two processes of bubblewrap on the host: the outer one, our child, waits for the inner one, which becomes
process 1 of the sandbox. Killing the outer one would leave the inner one alive, so its id is asked for (`--info-fd`)
and held as a pidfd: with process 1 the kernel ends all that is in the sandbox. `--die-with-parent` is of no use, as it
acts when the thread that started bubblewrap ends.

Process 1 is stopped (`--block-fd`) until it is in its control groups, so nothing of it ever ran without them.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from io import FileIO
from typing import Any

from agentrl.errors import InfrastructureError
from agentrl.sandbox.bubblewrap.command import Descriptors, sandbox_command
from agentrl.sandbox.cleanup import PROCESS_PREFIX
from agentrl.sandbox.core import Limits
from agentrl.sandbox.host_python import HostPython
from agentrl.sandbox.link import SocketEnd
from agentrl.sandbox.linux.cgroups import Cgroup, find_place, total_limits
from agentrl.sandbox.linux.pidfd import pidfd_kill, pidfd_open, pidfd_wait
from agentrl.sandbox.linux.seccomp import bpf_program
from agentrl.sandbox.linux.user_ids import UserIds, user_ids
from agentrl.sandbox.owner import owned_name

_START_S = 60.0
_CLOSE_S = 10.0
_DEATH_S = 10.0
"""How long after its stream a process ends on a machine that is badly overloaded."""
_LAST_WORDS_BYTES = 1 << 16


class BubblewrapLink(SocketEnd):
    """The stream to process 1 of a sandbox.

    Args:
        bwrap: Path of bubblewrap.
        python: What is shown of the host.
        program: Process 1.
        environment: Its variables.
        limits: Of each session.

    Raises:
        InfrastructureError: Bubblewrap fails; the message quotes it.
    """

    def __init__(
        self, bwrap: str, python: HostPython, program: Iterable[str], environment: Mapping[str, str], limits: Limits
    ) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(ours)
        self._limits = limits
        self._owner = os.getpid()
        self._close_lock = threading.Lock()
        self._is_closed = False
        self._was_out_of_memory = False
        self._pidfd: int | None = None
        self._cgroup: Cgroup | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._num_killed_before = 0
        """Processes that were killed for memory before the last request."""
        self._user_ids: UserIds | None = user_ids() if os.geteuid() == 0 else None
        self._uid = None if self._user_ids is None else self._user_ids.take()
        try:
            with theirs:
                self._start(bwrap, python, program, environment, theirs)
        except BaseException as error:
            text = self.last_words()
            self.close()
            if isinstance(error, OSError | ValueError):  # ValueError: half of the JSON text, as bubblewrap has ended
                raise InfrastructureError(f"Bubblewrap cannot start a sandbox: {text or error}") from error
            raise

    def _start(
        self,
        bwrap: str,
        python: HostPython,
        program: Iterable[str],
        environment: Mapping[str, str],
        stream: socket.socket,
    ) -> None:
        """Starts bubblewrap, and lets process 1 go once it is held and limited."""
        place = find_place()
        with contextlib.ExitStack() as stack:
            (read_filter, write_filter), (read_info, write_info), (read_block, write_block) = (
                _pipe(stack) for _ in range(3)
            )
            write_filter.write(bpf_program())
            fds = Descriptors(seccomp=read_filter.fileno(), info=write_info.fileno(), block=read_block.fileno())
            command = sandbox_command(
                python,
                program,
                environment,
                disk_bytes=int(self._limits.disk_mb * (1 << 20)),
                descriptors=fds,
                uid=self._uid,
            )
            self._process = subprocess.Popen(
                [owned_name(PROCESS_PREFIX), *command],
                executable=bwrap,
                pass_fds=[fds.seccomp, fds.info, fds.block],
                stdin=stream.fileno(),
                stdout=stream.fileno(),
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                start_new_session=True,
            )
            for end in (write_filter, write_info, read_block):
                end.close()
            pid = _read_json(read_info.fileno())["child-pid"]
            self._pidfd = pidfd_open(pid)
            if place is not None:
                self._cgroup = place.create()
                self.resize(1)
                self._cgroup.add(pid)
            with contextlib.suppress(BrokenPipeError):  # bubblewrap failed; the stream has ended
                write_block.write(b"\n")

    @property
    def limits_are_enforced(self) -> bool:
        """Whether the kernel limits the sandbox as a whole."""
        return self._cgroup is not None

    def resize(self, num_sessions: int) -> None:
        """See `Link.resize`."""
        if self._cgroup is not None:
            memory_bytes, pids = total_limits(self._limits, num_sessions)
            self._cgroup.limit(memory_bytes=memory_bytes, pids=pids)

    def send(self, data: bytes, timeout_s: float) -> None:
        """See `Link.send`."""
        num_killed = 0 if self._cgroup is None else self._cgroup.num_killed_for_memory()
        super().send(data, timeout_s)  # fails if the sandbox has died since, which is then for memory, too
        self._num_killed_before = num_killed

    def ran_out_of_memory(self) -> bool:
        """See `Link.ran_out_of_memory`."""
        if self._process is None or self._cgroup is None:
            return False
        with self._close_lock:
            if not self._is_closed:
                self._note_out_of_memory(self._process, self._cgroup)
        return self._was_out_of_memory

    def _note_out_of_memory(self, process: subprocess.Popen[bytes], cgroup: Cgroup) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            was_killed = process.wait(_DEATH_S) in (-signal.SIGKILL, 128 + signal.SIGKILL)
            self._was_out_of_memory = was_killed and cgroup.num_killed_for_memory() > self._num_killed_before

    def last_words(self) -> str:
        """See `Link.last_words`."""
        self.hang_up()
        if self._process is None or self._process.stderr is None or self._process.stderr.closed:
            return ""
        self.other_side_ended(_DEATH_S)
        os.set_blocking(self._process.stderr.fileno(), False)
        text = self._process.stderr.read(_LAST_WORDS_BYTES) or b""
        lines = text.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """See `Link.close`."""
        if os.getpid() != self._owner:
            self.abandon()
            return
        self.hang_up()
        with self._close_lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._pidfd is not None:
                pidfd_kill(self._pidfd)
                pidfd_wait(self._pidfd, _CLOSE_S)
                os.close(self._pidfd)
            if self._process is not None:
                self._end_outer(self._process)
            if self._cgroup is not None:
                self._cgroup.remove()
            if self._user_ids is not None and self._uid is not None:
                self._user_ids.give_back(self._uid)
            self.abandon()

    def _end_outer(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for the outer process, which ends by itself when the inner one has; without one it is killed."""
        try:
            process.wait(_CLOSE_S if self._pidfd is not None else 0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _pipe(stack: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    """Both ends of a pipe, which are closed with the stack unless they are before."""
    read_fd, write_fd = os.pipe()
    return stack.enter_context(FileIO(read_fd, "rb")), stack.enter_context(FileIO(write_fd, "wb"))


def _read_json(fd: int) -> Any:
    """The first JSON object that is written.

    Raises:
        ValueError: The stream ends before.
        TimeoutError: Nothing comes.
    """
    text = b""
    deadline = time.monotonic() + _START_S
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not text.rstrip().endswith(b"}"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("bubblewrap does not say which process it has started")
        part = os.read(fd, 4096)
        if not part:
            break
        text += part
    return json.loads(text)
