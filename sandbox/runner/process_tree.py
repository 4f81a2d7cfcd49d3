"""Finding, measuring and killing all processes below this one.

Linux only where it matters: elsewhere there is no /proc, nothing is found, and callers fall back on process groups.
Standard library only: the runner has this file without agentrl.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What some processes use together."""

    cpu_s: float = 0.0
    """CPU seconds of the processes and of their children that have ended and were waited for."""
    num_tasks: int = 0
    """Threads of all processes; a zombie counts as one."""
    resident_bytes: int = 0
    """Resident memory; pages that several processes share are counted in each."""


class _Stat(NamedTuple):
    """The fields of /proc/PID/stat that are needed here (see proc(5))."""

    state: str
    parent: int
    cpu_s: float
    num_threads: int
    resident_bytes: int


def adopt_orphans(adopts: bool) -> None:
    """Whether orphaned descendants become children of this process or of one above; without effect off Linux."""
    with suppress(OSError, AttributeError):
        ctypes.pythonapi.prctl(_PR_SET_CHILD_SUBREAPER, int(adopts), 0, 0, 0)


def descendants(pid: int, prune: Iterable[int] = ()) -> list[int]:
    """All processes below `pid`, parents first, leaving out the processes in `prune` and everything below them.

    Process 1 of a namespace takes them from /proc, in no order, and what is below those in `prune` too. Elsewhere they
    come from the lists of children, of which the kernel may skip an entry while another is reaped.
    """
    hidden = set(prune)
    if pid == 1:
        return [other for other in _all_processes() if other != 1 and other not in hidden]
    found: list[int] = []
    queue = [pid]
    while queue:
        children = [child for child in _children(queue.pop()) if child not in hidden]
        hidden.update(children)  # a process that moves to another parent while this runs is met once
        found += children
        queue += children
    return found


def measure(pids: Iterable[int]) -> Usage:
    """CPU, tasks and memory of the processes that still exist."""
    stats = [stat for stat in map(_read_stat, pids) if stat is not None]
    return Usage(
        cpu_s=sum(stat.cpu_s for stat in stats),
        num_tasks=sum(stat.num_threads for stat in stats),
        resident_bytes=sum(stat.resident_bytes for stat in stats),
    )


def proportional_bytes(pids: Iterable[int]) -> int:
    """Memory of the processes with shared pages divided among those that share them; slower than `measure`."""
    return sum(map(_proportional_bytes, pids))


def kill_descendants(pid: int, *, spare: Iterable[int] = (), prune: Iterable[int] = (), limit_s: float = 5.0) -> bool:
    """Kills everything below `pid` until only zombies are left; False if `limit_s` seconds were not enough.

    Args:
        pid: This process or one below it.
        spare: Processes that live on, but whose own children are killed.
        prune: Processes that live on with everything below them.
        limit_s: After this many seconds it gives up.
    """
    spared = set(spare)
    deadline = time.monotonic() + limit_s
    num_empty = 0
    while True:
        alive = [p for p in descendants(pid, prune) if p not in spared and is_alive(p)]
        num_empty = 0 if alive else num_empty + 1
        if num_empty == 2:  # one look may have missed a process, see `descendants`
            return True
        for victim in alive:
            send_signal(victim, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        if alive:
            time.sleep(0.0001)


def kill_namespace(spare: Iterable[int]) -> set[int]:
    """Kills all other processes of the namespace that this one is the first of, and stops those that it spares.

    Does not wait: what was sent SIGKILL runs no program any more and cannot fork, but may take a while to end.

    Returns:
        What was killed.
    """
    spared = {1, *spare}
    killed: set[int] = set()
    while True:
        _stop_everything()
        alive = [p for p in _all_processes() if p not in spared and p not in killed and is_alive(p)]
        if not alive:
            return killed
        for victim in alive:
            send_signal(victim, signal.SIGKILL)
        killed.update(alive)  # and look again: one that still ran can have set another going


def _stop_everything() -> None:
    """Stops all processes of the namespace that this one is the first of, at one stroke: none can fork on."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGSTOP)


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signals a process that may be gone already."""
    with suppress(ProcessLookupError, PermissionError, OverflowError):
        os.kill(pid, number)


def kill_group(pgid: int) -> None:
    """Kills a process group at one stroke, so that no member can fork its way out of it."""
    with suppress(ProcessLookupError, PermissionError, OverflowError):
        os.killpg(pgid, signal.SIGKILL)


def becomes_child(pid: int, limit_s: float = 0.1) -> bool:
    """Whether a process is a child of this one, or is left to it by its parent's end within a time.

    True where there is no /proc to tell.
    """
    if not os.path.exists("/proc/self/stat"):
        return True
    deadline = time.monotonic() + limit_s
    while (stat := _read_stat(pid)) is not None:
        if stat.parent == os.getpid():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return False


def reap() -> dict[int, tuple[int, float]]:
    """Waits for all children that have ended: process id to wait status and CPU seconds."""
    ended: dict[int, tuple[int, float]] = {}
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = (status, usage.ru_utime + usage.ru_stime)


def exists(pid: int) -> bool:
    """Whether a process has this id, zombies included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_alive(pid: int) -> bool:
    """Whether a process can still do something: zombies cannot."""
    stat = _read_stat(pid)
    # A zombie with threads is a process whose first thread has ended.
    return stat is not None and (stat.state not in "ZX" or stat.num_threads > 1)


def read_text(path: str) -> str:
    """What a file of /proc says; names in it may be of any bytes.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, errors="replace") as file:
        return file.read()


def _proportional_bytes(pid: int) -> int:
    try:
        for line in read_text(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except PermissionError:  # it has made itself unreadable
        stat = _read_stat(pid)
        return 0 if stat is None else stat.resident_bytes
    except (OSError, ValueError):
        pass
    return 0


def _all_processes() -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return []


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                children += map(int, read_text(f"/proc/{pid}/task/{task}/children").split())
    return children


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = read_text(f"/proc/{pid}/stat")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name in parentheses may itself hold spaces and parentheses
    ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return _Stat(fields[0], int(fields[1]), ticks / _TICKS_PER_S, int(fields[17]), int(fields[21]) * _PAGE_BYTES)
