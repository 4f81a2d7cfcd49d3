"""A process that waits for the end of the one that opens sandboxes, and then removes what is left of them.

Sandboxes end by themselves when their owner does, also when it is killed. Not so the folders and control groups around
them, or a container that was created and never started, so somebody must outlive the owner. It is a bare Python that
sleeps until the kernel reports the owner's end, in a session of its own and nobody's child: signals to the owner's
process group or session do not reach it. Only then does it load what it needs.
"""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import agentrl
from agentrl.forking import fresh_after_fork
from agentrl.sandbox import cleanup
from agentrl.sandbox.linux import pidfd

_WAIT = """
import sys, time
owner = int(sys.argv[1])
pidfd = None
if sys.platform == "linux":
    try:
        pidfd = pidfd_open(owner)
    except OSError:  # it is dead, or this kernel has no such thing
        pass
lives = os.getppid() == owner
if os.fork():
    os._exit(0)
try:
    while lives and not (pidfd is not None and pidfd_wait(pidfd, 3600)):
        os.kill(owner, 0)
        if pidfd is None:
            time.sleep(1)
except ProcessLookupError:
    pass
os.execv(sys.argv[2], sys.argv[2:])
"""
_CLEAN_UP = "import sys; sys.path.append(sys.argv[1]); from agentrl.sandbox.cleanup import outlast; outlast()"


class _Janitor:
    """The one of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_started = False

    def ensure(self) -> None:
        with self._lock:
            if not self._is_started:
                for leftover in cleanup.find_leftovers():  # of owners who were killed together with their janitor
                    leftover.remove()
                _start()
                self._is_started = True

    def forget(self) -> None:
        """In a forked copy of the process: it is another owner."""
        self._lock = threading.Lock()
        self._is_started = False


def ensure_janitor() -> None:
    """Starts this process's janitor unless it has one; every back end calls it before it starts something."""
    _janitor.ensure()


def _start() -> None:
    """Starts a process that starts the janitor and ends, so that it is nobody's child."""
    waiting = Path(pidfd.__file__).read_text(encoding="utf-8") + _WAIT
    packages = str(Path(agentrl.__file__).parents[1])
    cleaning = [sys.executable, "-P", "-W", "ignore", "-c", _CLEAN_UP, packages]
    with contextlib.suppress(OSError):  # all is well without one unless this process is killed
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", waiting, str(os.getpid()), *cleaning],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            check=False,
        )


_janitor = _Janitor()
fresh_after_fork(_janitor, _Janitor.forget)
