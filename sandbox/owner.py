"""Who made a sandbox: an id that every container and folder carries, so that what a dead process left can be told.

A process cannot clean up after its own SIGKILL. Another one can, if it knows that the owner is gone: a process id alone
does not say so, as it is soon given to another process; together with the start time it is unique.
"""

import functools
import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

_UNKNOWN = "-"
"""Stands where the system does not tell."""


@dataclass(frozen=True, slots=True)
class _Owner:
    host: str
    """Hash of the machine's name and id."""
    boot: str
    """Changes when the machine is started again."""
    pid_namespace: str
    """A process id means nothing in another namespace: a trainer in a container counts from one."""
    pid: int
    start: str


def owner_id() -> str:
    """The id of the calling process, different after a fork; letters, digits, dots and dashes only.

    Example:
        >>> is_dead(owner_id())
        False
    """
    me = os.getpid()
    return ".".join((_host(), _boot(), _pid_namespace(), str(me), _start_time(me) or _UNKNOWN))


def owned_name(prefix: str) -> str:
    """How the name of a thing of the calling process begins; the caller adds what makes it unique."""
    return f"{prefix}{owner_id()}_"


def owner_in(name: str, prefix: str) -> str | None:
    """The owner id in a name that `owned_name` began, or None.

    Example:
        >>> owner_in(owned_name("folder-") + "x3_7", "folder-") == owner_id()
        True
    """
    owner, separator, _ = name.removeprefix(prefix).partition("_")
    return owner if name.startswith(prefix) and separator else None


def is_dead(owner: str) -> bool:
    """Whether the process of that id is known to have ended.

    Of a process on another machine or in another container nothing is known, so it is not dead. Text that is no id of
    this module is nobody's business either.
    """
    parsed = _parse(owner)
    if parsed is None or parsed.host != _host():
        return False
    if parsed.boot != _boot():
        return True
    return parsed.pid_namespace == _pid_namespace() and _start_time(parsed.pid) != parsed.start


def _parse(owner: str) -> _Owner | None:
    parts = owner.split(".")
    if len(parts) != 5 or not parts[3].isdecimal():
        return None
    return _Owner(parts[0], parts[1], parts[2], int(parts[3]), parts[4])


@functools.cache
def _host() -> str:
    identity = f"{platform.node()}\n{_read('/etc/machine-id')}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


@functools.cache
def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id").replace("-", "")[:16] or _UNKNOWN


def _pid_namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # no Linux: there is but one
        return _UNKNOWN


def _start_time(pid: int) -> str | None:
    """When a process was started, in a form that is equal as long as it lives; None once it has ended."""
    if not os.path.exists("/proc/self/stat"):
        return _start_time_by_ps(pid)
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name in parentheses may hold spaces and parentheses
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended, whoever is slow to reap it


def _start_time_by_ps(pid: int) -> str | None:
    answer = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, env={"LC_ALL": "C"}
    )
    return "-".join(answer.stdout.replace(":", "-").split()) or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
