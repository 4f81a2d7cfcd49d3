"""The folders of sessions: `work`, where cells run, and `tmp`.

Whatever lies in them was made by model-written code: no link in it is followed, no special file opened.
Standard library only: the runner has this file without agentrl.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress

PARTS = ("work", "tmp")
_PARKED = ".parked"
_TRASH = ".trash"
_COPY_BYTES = 1 << 20


class SessionFolders:
    """The folders of all sessions that share a sandbox; the active session's are `root/work` and `root/tmp`.

    The others wait in a corner under their session's name and change places when it is their turn. A path that a cell
    has kept as text thereby names the same file in a session and in its fork, and each has a file of its own there.

    Args:
        root: Private, writable folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._active: str | None = None

    def create(self, session: str) -> None:
        """Makes empty folders for a session and makes it the active one.

        Raises:
            OSError: They cannot be made.
        """
        for part in PARTS:
            os.makedirs(os.path.join(self._parked(session), part), mode=0o700, exist_ok=True)
        self.activate(session)

    def place(self, session: str) -> str:
        """The folder in which the session's `work` and `tmp` lie now."""
        return self.root if session == self._active else self._parked(session)

    def activate(self, session: str) -> None:
        """Puts the session's folders in the active place.

        Raises:
            OSError: Cells have made this impossible.
        """
        if session == self._active:
            return
        if self._active is not None:
            self._move(self.root, self._parked(self._active))
        self._active = None
        self._move(self._parked(session), self.root)
        self._active = session

    def copy(self, session: str, twin: str) -> None:
        """Copies the folders of a session for its fork.

        Raises:
            OSError: Something cannot be read or written, for example because the disk is full.
        """
        for part in PARTS:
            copy_folder(os.path.join(self.place(session), part), os.path.join(self._parked(twin), part))

    def empty(self, session: str) -> None:
        """Removes all that is in the session's folders."""
        for part in PARTS:
            empty_folder(os.path.join(self.place(session), part), trash=os.path.join(self.root, _TRASH))

    def sweep(self, sessions: Iterable[str]) -> None:
        """Removes what lies beside the folders of the sessions, where cells can write too."""
        expected = {self.root: {*PARTS, _PARKED}, os.path.join(self.root, _PARKED): set(sessions)}
        for folder, names in expected.items():
            with suppress(OSError):
                for name in set(os.listdir(folder)) - names:
                    remove_folder(os.path.join(folder, name), trash=os.path.join(self.root, _TRASH))

    def remove(self, session: str) -> None:
        """Removes the folders of a session and all that is in them."""
        for part in PARTS:
            remove_folder(os.path.join(self.place(session), part), trash=os.path.join(self.root, _TRASH))
        if session == self._active:
            self._active = None
        with suppress(OSError):
            os.rmdir(self._parked(session))

    def _parked(self, session: str) -> str:
        return os.path.join(self.root, _PARKED, session)

    def _move(self, source: str, target: str) -> None:
        os.makedirs(target, mode=0o700, exist_ok=True)
        for part in PARTS:
            here, there = os.path.join(source, part), os.path.join(target, part)
            remove_folder(there, trash=os.path.join(self.root, _TRASH))  # nothing, unless a cell has put it there
            try:
                os.rename(here, there)
            except FileNotFoundError:  # a cell has removed it
                os.mkdir(there, 0o700)


def copy_folder(source: str, target: str) -> None:
    """Copies directories, regular files and links (as links) from `source` into the folder `target`, made if missing.

    Raises:
        OSError: Something cannot be read or written.
    """
    os.makedirs(target, mode=0o700, exist_ok=True)
    pending = [(source, target)]
    while pending:  # not recursive: programs can nest deeper than Python's stack
        here, there = pending.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                copy = os.path.join(there, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    os.mkdir(copy, 0o700)
                    pending.append((entry.path, copy))
                elif entry.is_symlink():
                    os.symlink(os.readlink(entry.path), copy)
                elif entry.is_file(follow_symlinks=False):
                    _copy_file(entry.path, copy)


def _copy_file(source: str, target: str) -> None:
    read_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(read_fd)
        write_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            while data := os.read(read_fd, _COPY_BYTES):
                while data:
                    data = data[os.write(write_fd, data) :]
            os.fchmod(write_fd, stat.S_IMODE(status.st_mode))
            os.utime(write_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(write_fd)
    finally:
        os.close(read_fd)


def empty_folder(path: str, trash: str | None = None) -> None:
    """Removes all that is in a folder, see `remove_folder`."""
    with suppress(OSError):  # it may be somebody else's, and yet open to us
        os.chmod(path, 0o700)
    with suppress(OSError):
        for name in os.listdir(path):
            remove_folder(os.path.join(path, name), trash)


def remove_folder(path: str, trash: str | None = None) -> None:
    """Removes a file or a folder, however deep and whatever its permissions; quiet if it is gone.

    Args:
        path: What to remove.
        trash: A folder on the same file system for the time of the work; beside `path` unless given.
    """
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
    except OSError:
        return
    trash = trash or f"{path}{_TRASH}"
    with suppress(OSError):
        os.mkdir(trash, 0o700)
    # Folders inside are moved up before they are emptied, so that no path gets longer than the first.
    numbers = _numbers()
    pending = [path]
    while pending:
        folder = pending.pop()
        with suppress(OSError):
            os.chmod(folder, 0o700)
            with os.scandir(folder) as entries:
                for entry in list(entries):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(_moved_up(entry.path, os.path.join(trash, next(numbers))))
                    else:
                        os.unlink(entry.path)
            os.rmdir(folder)
    with suppress(OSError):
        os.rmdir(trash)


def _numbers() -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield str(number)


def _moved_up(folder: str, place: str) -> str:
    """Moves a folder, and says where it is now."""
    try:
        os.chmod(folder, 0o700)  # renaming writes its entry `..`
        os.rename(folder, place)
    except OSError:
        return folder
    return place
