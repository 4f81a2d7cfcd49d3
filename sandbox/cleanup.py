"""Removing what processes that are dead have left: sandboxes, control groups, folders, containers.

Normally there is nothing: a session that is closed takes all of its own with it, and a runner ends when its host does.
This is for the rest, and only for it: everything carries the id of its owner (owner.py), and what belongs to a process
that lives, or of which nothing is known, is not touched.
"""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agentrl.errors import AgentRLError
from agentrl.sandbox.linux.cgroups import Cgroup, owned_groups
from agentrl.sandbox.owner import is_dead, owner_in
from agentrl.sandbox.runner.process_tree import kill_descendants, send_signal
from agentrl.sandbox.runner.session_folder import remove_folder

PROCESS_PREFIX = "agentrl-sandbox-"
"""Begins the name of the outer process of a bubblewrap sandbox."""
FOLDER_PREFIX = "agentrl-session-"
"""Begins the name of the folder of a session without isolation."""
_KILL_S = 5.0
_ENGINE_SOCKET = "/var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something whose owner is dead."""

    description: str
    remove: Callable[[], bool]
    """Removes it; whether it is gone."""


def clean_up() -> list[str]:
    """Removes everything on this machine whose owner is dead; a line for each thing that was removed."""
    removed = [leftover.description for leftover in find_leftovers() if leftover.remove()]
    return removed + _remove_containers()


def outlast(limit_s: float = 30.0, pause_s: float = 0.5) -> None:
    """Cleans up until nothing is found twice in a row, or the time is over.

    Twice, as a container may come into being after the process that asked for it is gone.
    """
    deadline = time.monotonic() + limit_s
    num_quiet = 0
    while num_quiet < 2 and time.monotonic() < deadline:
        num_quiet = 0 if clean_up() or any(find_leftovers()) else num_quiet + 1
        time.sleep(pause_s)


def find_leftovers() -> Iterator[Leftover]:
    """What is left of dead owners on this machine itself; containers are the engine's to know."""
    yield from _processes()
    yield from _cgroups()
    yield from _folders()


def _processes() -> Iterator[Leftover]:
    """Outer processes of bubblewrap. The sandbox below one is killed first: it would outlive it."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (entry / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
            owner = owner_in(name, PROCESS_PREFIX)
            if owner is not None and is_dead(owner) and _may_change(entry):
                yield Leftover(f"process {entry.name} (bubblewrap)", partial(_kill_tree, int(entry.name)))


def _kill_tree(pid: int) -> bool:
    if not kill_descendants(pid, limit_s=_KILL_S):
        return False
    send_signal(pid, signal.SIGKILL)
    return True


def _cgroups() -> Iterator[Leftover]:
    for owner, group in owned_groups():
        if is_dead(owner) and all(_may_change(folder) for folder in group.folders):
            yield Leftover(f"control group {group.folders[0]}", partial(_empty, group))


def _empty(group: Cgroup) -> bool:
    deadline = time.monotonic() + _KILL_S
    while group.kill() and time.monotonic() < deadline:  # until those are gone that were being born meanwhile
        time.sleep(0.01)
    return group.remove()


def _folders() -> Iterator[Leftover]:
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        owner = owner_in(folder.name, FOLDER_PREFIX)
        if owner is not None and is_dead(owner) and folder.is_dir() and not folder.is_symlink() and _may_change(folder):
            yield Leftover(f"folder {folder}", partial(_remove_session_folder, folder))


def _remove_session_folder(folder: Path) -> bool:
    remove_folder(str(folder))
    return not folder.exists()


def _may_change(path: Path) -> bool:
    """Whether something is ours. Root leaves alone what others own, too: in a shared folder it could be a trap."""
    try:
        return path.stat(follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        return False


def _remove_containers() -> list[str]:
    if "DOCKER_HOST" not in os.environ and not os.path.exists(_ENGINE_SOCKET):
        return []
    from agentrl.sandbox.docker.engine import Engine

    try:
        num_removed = Engine().remove_leftovers()
    except AgentRLError:  # no engine answers, or it has other worries
        return []
    return [f"{num_removed} containers"] if num_removed else []
