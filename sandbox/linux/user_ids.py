"""User ids for sandboxes that root starts: each is used by one sandbox of the machine and by nobody else.

They come from a range that no distribution gives to users, containers or services. That an id is taken is a lock on
one byte of a file, which the kernel releases however its holder ends, and which a forked process does not inherit.
"""

import fcntl
import os
import threading

from agentrl.errors import InfrastructureError
from agentrl.forking import fresh_after_fork

FIRST_UID = 1_900_000_000
NUM_UIDS = 1 << 20
_LOCK_FILE = "/run/agentrl-user-ids"


class UserIds:
    """The ids that one process has taken.

    Args:
        path: The file that all processes of the machine lock.
    """

    def __init__(self, path: str = _LOCK_FILE) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._taken: set[int] = set()
        self._lock = threading.Lock()

    def take(self) -> int:
        """An id that is nobody else's until it is given back, or until this process ends.

        Raises:
            InfrastructureError: All are taken.
        """
        with self._lock:
            for number in range(NUM_UIDS):
                if number in self._taken:
                    continue
                try:
                    fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                except OSError:  # another process has it
                    continue
                self._taken.add(number)
                return FIRST_UID + number
        raise InfrastructureError("All user ids for sandboxes are taken.")

    def give_back(self, uid: int) -> None:
        """Lets others have the id; one that was not taken is nobody's to give."""
        number = uid - FIRST_UID
        with self._lock:
            if number in self._taken:
                self._taken.remove(number)
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number)


class _OfProcess:
    """Makes the one that a process has: a second one would be given the same locks, as they are the process's."""

    def __init__(self) -> None:
        self.after_fork()
        fresh_after_fork(self, type(self).after_fork)

    def after_fork(self) -> None:
        """Begins without: what a parent has taken is not the child's to give back."""
        self._lock = threading.Lock()
        self._user_ids: UserIds | None = None

    def get(self) -> UserIds:
        with self._lock:
            if self._user_ids is None:
                self._user_ids = UserIds()
            return self._user_ids


_of_process = _OfProcess()


def user_ids() -> UserIds:
    """Those of the running process.

    Raises:
        InfrastructureError: The file cannot be made.
    """
    try:
        return _of_process.get()
    except OSError as error:
        raise InfrastructureError(f"User ids for sandboxes are kept in {_LOCK_FILE}, which fails: {error}") from error
