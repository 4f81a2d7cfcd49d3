"""Taking apart the stream that an engine attaches to a container: standard output and standard error in one.

The engine puts a head before each piece: one byte that says which stream, three zeros, the length in four bytes.
"""

import struct
from collections import deque

_HEAD = struct.Struct(">B3sI")
_STDOUT, _STDERR = 1, 2
_MAX_PIECE_BYTES = 1 << 24
"""Engines send at most 32 KiB at a time; what claims to be larger is no head."""


class Demultiplexer:
    """Takes the stream in pieces of any size.

    Args:
        max_stderr_bytes: Of standard error only the last so many bytes are kept.

    Example:
        >>> demultiplexer = Demultiplexer()
        >>> demultiplexer.feed(bytes([1, 0, 0, 0, 0, 0, 0, 5]) + b"he"), demultiplexer.feed(b"llo")
        (b'he', b'llo')
    """

    def __init__(self, max_stderr_bytes: int = 4096) -> None:
        self._head = b""
        """What has come of an incomplete head."""
        self._is_error = False
        self._num_left = 0
        """Bytes that are still to come of the present piece."""
        self._stderr: deque[int] = deque(maxlen=max_stderr_bytes)

    def feed(self, data: bytes) -> bytes:
        """The standard output in `data`.

        Raises:
            OSError: This is not a stream of this kind.
        """
        output = bytearray()
        position = 0
        while position < len(data):
            if self._num_left:
                piece = data[position : position + self._num_left]
                position += len(piece)
                self._num_left -= len(piece)
                if self._is_error:
                    self._stderr.extend(piece)
                else:
                    output += piece
            else:
                rest = _HEAD.size - len(self._head)
                self._head += data[position : position + rest]
                position += rest
                if len(self._head) == _HEAD.size:
                    self._begin_piece()
        return bytes(output)

    def last_error_line(self) -> str:
        """The last line of standard error that is not empty."""
        lines = bytes(self._stderr).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _begin_piece(self) -> None:
        kind, zeros, self._num_left = _HEAD.unpack(self._head)
        if kind not in (_STDOUT, _STDERR) or any(zeros) or self._num_left > _MAX_PIECE_BYTES:
            raise OSError(f"the engine sent {self._head.hex()}, which is not the head of a piece of output")
        self._is_error = kind == _STDERR
        self._head = b""
