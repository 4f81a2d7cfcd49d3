"""A bounded memory of an unbounded stream of output: how it began and how it ended.

Standard library only: the runner has this file without agentrl.
"""

import os

_READ_BYTES = 1 << 16
_REST_BYTES = 1 << 22


class OutputBuffer:
    """Keeps the first and the last bytes of what a cell wrote, in constant memory.

    Args:
        max_bytes: How much of the beginning is kept, and how much of the end.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = int(max_bytes)
        self._head = bytearray()
        self._tail = bytearray()
        self.num_bytes = 0
        """All that was ever written."""

    def add(self, data: bytes) -> None:
        """Takes in the next bytes of the stream."""
        self.num_bytes += len(data)
        room = self._max_bytes - len(self._head)
        self._head += data[:room]
        self._tail += data[max(room, len(data) - self._max_bytes) :]
        if len(self._tail) > 2 * self._max_bytes:
            del self._tail[: -self._max_bytes]

    def read_from(self, fd: int) -> bool:
        """Takes in what one read gives; False at the end of the stream."""
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return True
        self.add(data)
        return bool(data)

    def read_rest(self, fd: int) -> None:
        """Takes in what a non-blocking pipe still holds, but not more: a writer may live on."""
        limit = self.num_bytes + _REST_BYTES
        while self.num_bytes < limit:
            before = self.num_bytes
            self.read_from(fd)
            if self.num_bytes == before:
                return

    @property
    def head(self) -> str:
        """The beginning; everything, together with `tail`, if their sizes add up to `num_bytes`."""
        return self._head.decode("latin-1")

    @property
    def tail(self) -> str:
        """What was last written after the head, byte for byte as Latin-1."""
        return self._tail[-self._max_bytes :].decode("latin-1")
