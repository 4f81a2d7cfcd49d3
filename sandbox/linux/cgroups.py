"""Limits on the memory and the number of processes of a whole sandbox, kept by the kernel's control groups.

A sandbox gets a group below the one that the trainer itself is in, or, with cgroup v2, below the nearest ancestor that
may have groups with processes: the limits that the machine's owner has set for the trainer then hold for its sandboxes
too. Nothing is believed of a place for groups before it is tried out: a small process must be refused a child and be
killed for its memory there (`is_binding`). Where no place passes, for example for a user of a machine with cgroup v1,
limits are best effort: those that a runner watches and those that `setrlimit` knows.
"""

import contextlib
import functools
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentrl.sandbox.core import Limits
from agentrl.sandbox.owner import owned_name, owner_in

_PREFIX = "agentrl-"
_CONTROLLERS = ("memory", "pids")
_MB = 1 << 20
_RUNNER_BYTES = 64 * _MB
"""For the runner, and for what the kernel charges to a sandbox besides its programs' memory."""
_RUNNER_PIDS = 16
_REMOVE_S = 5.0
_MEMORY_FILES = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max")
"""Version 1, version 1 with swap, version 2; those that exist are written."""
_TEST_S = 30.0
_TEST_MB = 32
_TEST_PROGRAM = f"""
import os, sys
sys.stdin.readline()
try:
    os.fork()
except BlockingIOError:
    print("bound", flush=True)
bytearray({2 * _TEST_MB} << 20)
"""


@dataclass(frozen=True, slots=True)
class CgroupPlace:
    """Where groups can be made: a folder per controller, which with version 2 are one and the same."""

    folders: tuple[Path, ...]

    def create(self) -> "Cgroup":
        """A new group without limits, named after this process.

        Raises:
            OSError: It cannot be made.
        """
        name = owned_name(_PREFIX) + secrets.token_hex(8)
        group = Cgroup(tuple(folder / name for folder in self.folders))
        try:
            for folder in group.folders:
                folder.mkdir()
        except OSError:
            group.remove()
            raise
        return group


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The group of one sandbox."""

    folders: tuple[Path, ...]

    def add(self, pid: int) -> None:
        """Puts a process into the group; its children will be born there.

        Raises:
            OSError: This is not allowed, or there is no such process.
        """
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def limit(self, *, memory_bytes: int, pids: int) -> None:
        """Sets or raises the limits; they are never lowered, as the kernel may refuse that.

        Raises:
            OSError: The kernel refuses, or rounds to something else.
        """
        for folder in self.folders:
            files = [folder / name for name in _MEMORY_FILES if (folder / name).exists()]
            if files and _read_limit(files[0]) < memory_bytes:  # memory with swap may never be the lower one
                files.reverse()
            for file in files:
                _raise_limit(file, memory_bytes)
            if (folder / "memory.swap.max").exists():
                (folder / "memory.swap.max").write_text("0")
            if (folder / "pids.max").exists():
                _raise_limit(folder / "pids.max", pids)

    def num_killed_for_memory(self) -> int:
        """How many processes of the group the kernel has killed because its memory was used up."""
        for folder in self.folders:
            for name in ("memory.oom_control", "memory.events"):
                with contextlib.suppress(OSError):
                    match = re.search(r"^oom_kill (\d+)$", (folder / name).read_text(), re.MULTILINE)
                    if match:
                        return int(match[1])
        return 0

    def kill(self) -> bool:
        """Kills what is in the group; whether there was anything."""
        pids = {int(pid) for folder in self.folders for pid in _read(folder / "cgroup.procs").split()}
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def remove(self, limit_s: float = _REMOVE_S) -> bool:
        """Removes the group, waiting for the last of its processes to go; False if one is still there in the end."""
        deadline = time.monotonic() + limit_s
        while True:
            left = [folder for folder in self.folders if not _is_removed(folder)]
            if not left or time.monotonic() > deadline:
                return not left
            time.sleep(0.002)


def total_limits(limits: Limits, num_sessions: int) -> tuple[int, int]:
    """Bytes of memory and number of tasks that a sandbox may use for so many sessions.

    One cell runs at a time. While it does, there are the other sessions' interpreters and the checkpoint, each of which
    may hold as much as a session is allowed, and the cell itself; the files are in memory too.
    """
    memory_mb = (num_sessions + 1) * limits.memory_mb + limits.disk_mb
    return int(memory_mb * _MB) + _RUNNER_BYTES, int((num_sessions + 1) * limits.pids) + _RUNNER_PIDS


def find_place() -> CgroupPlace | None:
    """The place for this process's groups, tried out once; None if there is none, or none answers in time for now."""
    try:
        return _find_place()
    except subprocess.TimeoutExpired:
        return None


@functools.cache
def _find_place() -> CgroupPlace | None:
    for place in (_place_v1(), _place_v2()):
        if place is not None and is_binding(place):
            return place
    return None


def is_binding(place: CgroupPlace) -> bool:
    """Whether limits bind there: a process is refused a child, and killed for using more memory than its group may.

    Raises:
        subprocess.TimeoutExpired: The machine is too busy to tell.
    """
    try:
        group = place.create()
    except OSError:
        return False
    try:
        group.limit(memory_bytes=_TEST_MB * _MB, pids=1)
        command = [sys.executable, "-I", "-S", "-c", _TEST_PROGRAM]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as test:
            try:
                group.add(test.pid)
                output, _ = test.communicate(b"\n", timeout=_TEST_S)
            finally:
                test.kill()
        return output == b"bound\n" and test.returncode == -signal.SIGKILL and group.num_killed_for_memory() == 1
    except OSError:
        return False
    finally:
        group.kill()
        group.remove()


def owned_groups() -> Iterator[tuple[str, Cgroup]]:
    """Owner id and group of everything on this machine that `CgroupPlace.create` has made."""
    found: dict[str, list[Path]] = {}
    for mount in {mount.point for mount in _mounts()}:
        for parent, names, _ in os.walk(mount):
            owned = [name for name in names if owner_in(name, _PREFIX)]
            for name in owned:
                found.setdefault(name, []).append(Path(parent, name))
            names[:] = set(names) - set(owned)
    for name, folders in found.items():
        yield owner_in(name, _PREFIX) or "", Cgroup(tuple(folders))


@dataclass(frozen=True, slots=True)
class _Mount:
    """A line of /proc/self/mountinfo: a hierarchy of groups."""

    point: str
    root: str
    """The group that the mount point shows, if not all of the hierarchy is to be seen."""
    is_v2: bool
    controllers: frozenset[str]
    """Of version 1."""

    def folder_of(self, group: str) -> Path:
        return Path(self.point, os.path.relpath(group, self.root))


def _mounts() -> list[_Mount]:
    mounts = []
    for line in _read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and set(options.split(",")) & set(_CONTROLLERS)):
            mounts.append(_Mount(point, root, kind == "cgroup2", frozenset(options.split(","))))
    return mounts


def _own_groups() -> dict[str, str]:
    """Controller to this process's group; the empty controller stands for version 2."""
    groups = {}
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), group))
    return groups


def _place_v1() -> CgroupPlace | None:
    own = _own_groups()
    folders = []
    for controller in _CONTROLLERS:
        mount = next((mount for mount in _mounts() if controller in mount.controllers), None)
        if mount is None or controller not in own or not os.access(folder := mount.folder_of(own[controller]), os.W_OK):
            return None
        folders.append(folder)
    return CgroupPlace(tuple(dict.fromkeys(folders)))


def _place_v2() -> CgroupPlace | None:
    """The nearest ancestor that hands memory and pids down to its groups; one that holds processes cannot."""
    mount = next((mount for mount in _mounts() if mount.is_v2), None)
    group = _own_groups().get("")
    if mount is None or group is None:
        return None
    folder = mount.folder_of(group)
    while folder.is_relative_to(mount.point):
        handed_down = _read(folder / "cgroup.subtree_control").split()
        if set(_CONTROLLERS) <= set(handed_down) and os.access(folder, os.W_OK):
            return CgroupPlace((folder,))
        folder = folder.parent
    return None


def _read_limit(file: Path) -> int:
    text = file.read_text().strip()
    return sys.maxsize if text == "max" else int(text)


def _raise_limit(file: Path, value: int) -> None:
    before = _read_limit(file)
    if before < sys.maxsize // 2 and before >= value:  # unlimited is a very large number in version 1
        return
    file.write_text(str(value))
    if abs(_read_limit(file) - value) > os.sysconf("SC_PAGE_SIZE"):
        raise OSError(f"{file} was set to {value} and reads {_read_limit(file)}")


def _is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # busy: a process is in it, or is about to be gone
        return False
    return True


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
