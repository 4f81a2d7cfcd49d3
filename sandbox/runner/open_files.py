"""What a forked interpreter would share with its original, and undoing the sharing where that is possible.

After `fork` both processes have one file position for a file that was open, one pipe, one piece of shared memory.
Standard library only: the runner has this file without agentrl.
"""

import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

from agentrl.sandbox.runner.process_tree import read_text

_SELF_FDS = "/proc/self/fd"
_SELF_MAPS = "/proc/self/maps"
_PLAIN_KINDS = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR}
_KIND_NAMES = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def find_obstacle(own_fds: set[int]) -> str | None:
    """Why a copy of this process would not be independent of it, or None.

    Args:
        own_fds: Descriptors that belong to the sandbox and are replaced in the copy.
    """
    return _running_thread() or _shared_memory() or _unsplittable_file(own_fds)


def split_files(own_fds: set[int], old_root: str, new_root: str) -> None:
    """Gives this process file positions of its own, and its own copy of files that lie under `old_root`.

    Raises:
        OSError: A file could not be opened again.
    """
    for fd, mode in _open_fds(own_fds):
        if stat.S_ISCHR(mode):
            continue
        target = os.readlink(f"{_SELF_FDS}/{fd}")
        position, flags = _position_and_flags(fd)
        has_name = os.fstat(fd).st_nlink > 0
        moved = has_name and (target.startswith(old_root + "/") or target == old_root)
        path = new_root + target[len(old_root) :] if moved else f"{_SELF_FDS}/{fd}"
        copy = os.open(path, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_NOFOLLOW))
        if stat.S_ISREG(mode):
            os.lseek(copy, position, os.SEEK_SET)
        os.dup2(copy, fd, inheritable=os.get_inheritable(fd))
        os.close(copy)


def _running_thread() -> str | None:
    threading: Any = sys.modules.get("threading")
    if threading is None:
        return None
    others = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    return f"a thread is running ({others[0]})" if others else None


def _shared_memory() -> str | None:
    if not os.path.exists(_SELF_MAPS):
        return None
    for line in read_text(_SELF_MAPS).splitlines():
        permissions = line.split(maxsplit=2)[1]
        if permissions[1] == "w" and permissions[3] == "s":
            return "memory is mapped as shared (mmap, multiprocessing)"
    return None


def _unsplittable_file(own_fds: set[int]) -> str | None:
    for fd, mode in _open_fds(own_fds):
        kind = stat.S_IFMT(mode)
        if kind not in _PLAIN_KINDS:
            return f"{_KIND_NAMES.get(kind, 'a kernel object')} is open (descriptor {fd})"
        if kind == stat.S_IFCHR:
            continue
        if not os.path.isdir(_SELF_FDS):
            return f"a file is open (descriptor {fd}), and only Linux can open it a second time"
        is_written = _position_and_flags(fd)[1] & os.O_ACCMODE != os.O_RDONLY
        if os.fstat(fd).st_nlink == 0 and is_written:
            return f"a temporary file without a name is open for writing (descriptor {fd})"
    return None


def _open_fds(own_fds: set[int]) -> Iterator[tuple[int, int]]:
    """Descriptor and file mode of everything open but the standard streams and the sandbox's own."""
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd <= 2 or fd in own_fds:
            continue
        try:
            yield fd, os.fstat(fd).st_mode
        except OSError:  # the descriptor that listdir itself had open
            continue


def _position_and_flags(fd: int) -> tuple[int, int]:
    """Offset and open flags of a descriptor, as Linux reports them."""
    fields = dict(line.split(":\t", 1) for line in read_text(f"/proc/self/fdinfo/{fd}").splitlines() if line)
    return int(fields["pos"]), int(fields["flags"], 8)
