"""User ids for sandboxes that root starts: each is used by one sandbox of the machine and by nobody else.

They come from a range that no distribution gives to users, containers or services. That an id is taken is a lock on
one byte of a file, which the kernel releases however its holder ends, and which a forked process does not inherit.
"""

import fcntl
import functools
import os
import threading

from agentrl.errors import InfrastructureError

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
        """Lets others have the id."""
        with self._lock:
            self._taken.remove(uid - FIRST_UID)
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, uid - FIRST_UID)


@functools.cache
def _user_ids_of(pid: int) -> UserIds:
    """Per process, as what a parent has taken is not the child's to give back."""
    return UserIds()


def user_ids() -> UserIds:
    """Those of the running process.

    Raises:
        InfrastructureError: The file cannot be made.
    """
    try:
        return _user_ids_of(os.getpid())
    except OSError as error:
        raise InfrastructureError(f"User ids for sandboxes are kept in {_LOCK_FILE}, which fails: {error}") from error
