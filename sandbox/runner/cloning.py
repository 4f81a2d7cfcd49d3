"""Copying a process so that the copy is its parent's child and not its own.

Standard library only: the runner has this file without agentrl.
"""

import ctypes
import os
import signal
from contextlib import suppress

_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_PR_GET_TID_ADDRESS = 40
_SYSTEM_CALLS = {"x86_64": 56, "aarch64": 220}


def clone_sibling() -> int:
    """Like `os.fork`, but the copy is a child of this process's parent: 0 in the copy, another number here.

    `os.wait()` then never meets it. One system call does it where this process has a single thread; otherwise, as the
    copy needs what the C library does around a fork, a process in between makes the copy and ends, which leaves it to
    the nearest process that adopts orphans.

    Raises:
        OSError: No process can be made.
    """
    if _has_one_thread():
        with suppress(OSError, AttributeError, KeyError):
            return _clone_at_once()
    return _fork_twice()


def fork() -> int:
    """`os.fork`, where zombies that were never waited for may have used up the number of processes."""
    try:
        return os.fork()
    except BlockingIOError:
        _reap()
        return os.fork()


def _clone_at_once() -> int:
    python = ctypes.pythonapi
    thread_id_place = ctypes.c_void_p()
    if python.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(thread_id_place), 0, 0, 0):
        raise OSError("the C library does not say where it keeps the thread's id")
    machine = os.uname().machine
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
    # The order of the last two, place of the thread's id and thread-local storage, is not the same everywhere.
    last = (thread_id_place, None) if machine == "x86_64" else (None, thread_id_place)
    number = _SYSTEM_CALLS[machine]
    python.PyOS_BeforeFork()
    pid = int(python.syscall(number, ctypes.c_ulong(flags), None, None, *last))
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if pid < 0:
        _reap()
        raise OSError("no process can be made")
    return pid


def _fork_twice() -> int:
    middle = fork()
    if middle:
        with suppress(ChildProcessError):  # a cell ignores SIGCHLD
            os.waitpid(middle, 0)
        return middle
    try:
        if fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    return 0


def _has_one_thread() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
