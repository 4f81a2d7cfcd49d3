"""The command line of bubblewrap: what a sandbox sees, and what is taken from it.

The root is an empty, read-only file system of its own in which only the system's programs and libraries, the
interpreter and the chosen packages appear, read-only and where they lie on the host. The one place to write is `/box`,
in memory and of limited size; `/work`, `/tmp` and `/dev/shm` lead into it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from agentrl.sandbox.host_python import SYSTEM, HostPython

BOX = "/box"
_LINKS = (
    (f"{BOX}/work", "/work"),
    (f"{BOX}/tmp", "/tmp"),
    (f"{BOX}/tmp", "/var/tmp"),
    (f"{BOX}/tmp", "/dev/shm"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
"""No terminal: there is nothing to type into."""
_FROM_ETC = ("/etc/alternatives", "/etc/ld.so.cache")
"""Names of programs and of libraries; nothing else of /etc, which holds accounts and keys."""
_NOBODY = "65534"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Pipes to bubblewrap, by the number of the end that it gets."""

    seccomp: int
    """The filter's program is read from here."""
    info: int
    """The id of process 1 is written here."""
    block: int
    """Process 1 waits until something comes."""


def sandbox_command(
    python: HostPython,
    program: Iterable[str],
    environment: Mapping[str, str],
    *,
    disk_bytes: int,
    descriptors: Descriptors,
    uid: int | None,
) -> list[str]:
    """Arguments of bubblewrap, without its own name.

    Args:
        python: What is shown of the host besides the system.
        program: What runs as process 1.
        environment: All its variables.
        disk_bytes: Size of `/box`.
        descriptors: See there.
        uid: A root's choice for the user id inside; None has the caller's, which then is called nobody inside.
    """
    arguments = [*_namespaces(uid), *_files(python, disk_bytes), "--chdir", BOX, "--clearenv"]
    for name, value in environment.items():
        arguments += ["--setenv", name, value]
    for option, fd in (
        ("--seccomp", descriptors.seccomp),
        ("--info-fd", descriptors.info),
        ("--block-fd", descriptors.block),
    ):
        arguments += [option, str(fd)]
    return [*arguments, "--", *_drop_user(uid), *program]


def _namespaces(uid: int | None) -> list[str]:
    """Everything of its own but, for root, the users: then nothing would be gained, and bubblewrap could not read."""
    spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    capabilities = ["--cap-drop", "ALL"]
    if uid is None:
        spaces += ["--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY]
    else:
        for name in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):  # what _drop_user needs, and gives away
            capabilities += ["--cap-add", name]
    return [*spaces, *capabilities, "--hostname", "sandbox", "--new-session", "--as-pid-1"]


def _drop_user(uid: int | None) -> list[str]:
    """A program that gives up root for good and becomes the next one."""
    if uid is None:
        return []
    nothing = [f"--{kind}=-all" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    return ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *nothing, "--no-new-privs", "--"]


def _files(python: HostPython, disk_bytes: int) -> list[str]:
    """The mounts, each folder before what lies in it."""
    mounts: dict[str, list[str]] = {}
    for path in SYSTEM:
        if os.path.islink(path):
            mounts[path] = ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            mounts[path] = ["--ro-bind", path, path]
    for path in _FROM_ETC:
        mounts[path] = ["--ro-bind-try", path, path]
    for place, path in {**dict(zip(python.paths, python.paths, strict=True)), **python.packages}.items():
        mounts[place] = ["--ro-bind", path, place]
    for path in python.hidden:
        mounts[path] = ["--tmpfs", path]
    arguments = []
    made: set[str] = set()
    for path in sorted(mounts, key=lambda path: PurePosixPath(path).parts):
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            if str(parent) not in made and str(parent) not in mounts:
                made.add(str(parent))
                arguments += ["--dir", str(parent)]  # readable by all, whatever the host's is
        arguments += mounts[path]
    arguments += ["--dir", "/dev", "--dir", "/var", "--proc", "/proc"]
    for device in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for target, link in _LINKS:
        if link not in made:  # unless the interpreter lies there
            arguments += ["--symlink", target, link]
    arguments += ["--perms", "0777", "--size", str(disk_bytes), "--tmpfs", BOX]
    for path in (*python.hidden, "/"):
        arguments += ["--remount-ro", path]
    return arguments
