"""File descriptors that stand for processes: what they name can never become another process, as a process id can.

By system calls, whose numbers are the same on every machine: many Python builds lack `os.pidfd_open`, because they were
compiled against old kernel headers.
"""

import ctypes
import os
import select
import signal

_PIDFD_SEND_SIGNAL, _PIDFD_OPEN = 424, 434


def pidfd_open(pid: int) -> int:
    """A descriptor for a process; not inherited by programs.

    Raises:
        OSError: There is no such process, or the kernel is older than Linux 5.3.
    """
    return _call(_PIDFD_OPEN, pid, 0)


def pidfd_kill(pidfd: int) -> None:
    """Kills a process, which may have ended already."""
    try:
        _call(_PIDFD_SEND_SIGNAL, pidfd, int(signal.SIGKILL), None, 0)
    except ProcessLookupError:
        return


def pidfd_wait(pidfd: int, limit_s: float) -> bool:
    """Whether a process ends within a time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(limit_s * 1000))


def _call(number: int, *arguments: int | None) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
