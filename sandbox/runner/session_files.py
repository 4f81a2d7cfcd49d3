"""Reading and writing files of a session from the runner, which has rights that a cell must not borrow.

Names in a session's folder were chosen by model-written code: no link on the way is followed, and nothing but a regular
file is opened.
Standard library only: the runner has this file without agentrl.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK_BYTES = 1 << 19
"""What is read at once; as base64 it fits into a message."""
MAX_LISTED = 1000
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def read_file(folder: str, path: str, offset: int) -> tuple[bytes, int]:
    """A piece of a regular file, and the size of all of it.

    Args:
        folder: The session's working directory.
        path: Below it.
        offset: Where the piece begins.

    Raises:
        OSError: There is no such file, or it is a link, a folder, a device, a pipe.
    """
    with _folder_of(folder, path) as (folder_fd, name):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder_fd)
        try:
            size = _regular_size(fd)
            return os.pread(fd, CHUNK_BYTES, offset), size
        finally:
            os.close(fd)


def write_file(folder: str, path: str, data: bytes, *, append: bool) -> None:
    """Writes a regular file, making the folders that lead to it.

    Raises:
        OSError: There is something else of that name on the way, or no space.
    """
    with _folder_of(folder, path, make=True) as (folder_fd, name):
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_APPEND if append else 0)
        fd = os.open(name, flags, 0o600, dir_fd=folder_fd)
        try:
            _regular_size(fd)
            if not append:
                os.ftruncate(fd, 0)
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)


def list_files(folder: str) -> list[str]:
    """Paths of the regular files below a folder, in order; at most `MAX_LISTED`.

    Raises:
        OSError: The folder cannot be read.
    """
    found: list[str] = []
    pending = [""]
    while pending and len(found) < MAX_LISTED:
        here = pending.pop()
        with suppress(OSError), os.scandir(os.path.join(folder, here)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(here, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(path)
    return sorted(found)[:MAX_LISTED]


@contextmanager
def _folder_of(root: str, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Descriptor of the folder that holds `path`, and the last part of the path."""
    *parents, name = [part for part in path.split("/") if part not in ("", ".")] or [""]
    if not name or ".." in (*parents, name) or path.startswith("/"):
        raise OSError(errno.EINVAL, "a path below the working directory is needed")
    fd = os.open(root, _FOLDER_FLAGS)
    try:
        for part in parents:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
            below = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _regular_size(fd: int) -> int:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return status.st_size
