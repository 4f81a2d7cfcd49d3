"""The back end `unsafe_subprocess`: a runner in a plain subprocess, under limits, with no isolation at all.

**Not a security boundary.** Cells run with the rights of whoever started the training: they can read and write the
user's files, use the network and signal other processes. The limits hold against accidents: endless loops, too much
output or memory, crashes, left-over processes. Every descendant of a runner is found and killed on Linux, also one
that left its process group; elsewhere only the process group is. What no back end without isolation can stop is a
program that means harm, for example one that kills its own runner.

The runner lives for as long as the socket to the host is open: however the host ends, it cleans up and ends too.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading

from agentrl.errors import InfrastructureError
from agentrl.sandbox.cleanup import FOLDER_PREFIX
from agentrl.sandbox.core import Limits, SandboxUnavailableError, SecurityLevel
from agentrl.sandbox.janitor import ensure_janitor
from agentrl.sandbox.launch import runner_command, runner_environment
from agentrl.sandbox.link import SocketEnd, Started
from agentrl.sandbox.owner import owned_name
from agentrl.sandbox.runner.session_folder import remove_folder
from agentrl.sandbox.session import RunnerSandbox

_CLOSE_S = 10.0


class UnsafeSubprocess(RunnerSandbox):
    """Opens sessions in plain subprocesses; not a security boundary (see the module's text)."""

    name = "unsafe_subprocess"
    security_level = SecurityLevel.NONE

    def start(self, limits: Limits) -> Started:
        """Starts a runner in a subprocess, with a new folder in the system's temporary directory.

        Raises:
            SandboxUnavailableError: This is no POSIX system, or the folder cannot be made.
            InfrastructureError: No process can be started.
        """
        if os.name != "posix":
            raise SandboxUnavailableError(
                f"The sandbox unsafe_subprocess needs a POSIX system (fork), this is {os.name!r}; use WSL or Linux."
            )
        ensure_janitor()
        try:
            root = os.path.realpath(tempfile.mkdtemp(prefix=owned_name(FOLDER_PREFIX)))
        except OSError as error:
            raise SandboxUnavailableError(f"The session's folder cannot be made: {error}") from error
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    runner_command(sys.executable),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    env=runner_environment(),
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                remove_folder(root)
                raise InfrastructureError(f"No process can be started for a sandbox: {error}") from error
        return Started(link=_SubprocessLink(ours, process, root), root=root)


class _SubprocessLink(SocketEnd):
    """The stream to a runner in a subprocess."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes], root: str) -> None:
        super().__init__(sock)
        self._process = process
        self._root = root
        self._close_lock = threading.Lock()

    def resize(self, num_sessions: int) -> None:
        """Does nothing: the limits are those that the runner keeps."""

    def ran_out_of_memory(self) -> bool:
        """False: nothing tells why the kernel killed a process."""
        return False

    def last_words(self) -> str:
        """The last line that a runner which could not start wrote to its standard error."""
        self.hang_up()
        if not self.other_side_ended(1.0) or self._process.stderr is None or self._process.stderr.closed:
            return ""
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """Hangs up, waits until the runner has ended all its processes, and kills it if it does not."""
        self.hang_up()
        with self._close_lock:
            if self._process.returncode is not None:
                return
            if not self.other_side_ended(_CLOSE_S):
                with contextlib.suppress(OSError):
                    os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
            self.abandon()
        remove_folder(self._root)
