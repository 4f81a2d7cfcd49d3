"""Messages of a sandbox: length-prefixed JSON over a byte stream; between its processes also file descriptors.

Nothing but JSON ever crosses this border, and no byte count of the other side is believed before it is checked.
Standard library only: the runner has this file without agentrl.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NoReturn

HEADER = struct.Struct(">I")
MAX_FDS = 4
MAX_FRAME_BYTES = 1 << 20
_READ_BYTES = 1 << 16


class FrameError(Exception):
    """What arrived is not a message: junk, an oversized frame, half a frame."""


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as it is sent: four bytes of length, then JSON."""
    body = _to_text(message).encode()
    return HEADER.pack(len(body)) + body


def read_message(read: Callable[[int], bytes], max_bytes: int = MAX_FRAME_BYTES) -> dict[str, Any]:
    """The next message of a stream.

    Args:
        read: Gives at least one and at most so many bytes of the stream, none at its end.
        max_bytes: A larger message is refused before memory is taken for it.

    Raises:
        EOFError: The stream ended between two messages.
        FrameError: What came is no message.
    """
    header = _read_all(read, HEADER.size)
    if not header:
        raise EOFError("the other side hung up")
    if len(header) < HEADER.size:
        raise FrameError("half a header")
    (num_bytes,) = HEADER.unpack(header)
    if num_bytes > max_bytes:
        raise FrameError(f"a frame of {num_bytes} bytes; at most {max_bytes} are accepted")
    body = _read_all(read, num_bytes)
    if len(body) < num_bytes:
        raise FrameError("half a frame")
    return _parse(body)


class Channel:
    """One end of a connected unix stream socket, carrying JSON objects.

    Args:
        sock: The connected socket; the channel owns it.
        max_bytes: A larger incoming frame is refused before memory is taken for it.
        takes_fds: Whether descriptors are taken from the other side; otherwise the kernel closes those that come.
    """

    def __init__(self, sock: socket.socket, max_bytes: int = MAX_FRAME_BYTES, *, takes_fds: bool = True) -> None:
        self._sock = sock
        self.max_bytes = max_bytes
        self.takes_fds = takes_fds
        self._arrived = bytearray()

    @classmethod
    def adopt(cls, fd: int, max_bytes: int = MAX_FRAME_BYTES) -> "Channel":
        """The channel over a descriptor that was inherited or received."""
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd), max_bytes)

    def fileno(self) -> int:
        """The descriptor, for `select.poll`."""
        return self._sock.fileno()

    def send(self, message: Mapping[str, Any], fds: Sequence[int] = (), timeout_s: float | None = None) -> None:
        """Sends one message; the receiver gets duplicates of `fds`.

        Raises:
            TimeoutError: The other side does not read.
            OSError: It hung up.
        """
        data = encode(message)
        self._sock.settimeout(timeout_s)
        num_sent = socket.send_fds(self._sock, [data], fds) if fds else 0
        if num_sent < len(data):  # sending nothing would fail where the receiver has already read all and left
            self._sock.sendall(data[num_sent:])

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """Waits for one message and the descriptors that came with it.

        Raises:
            EOFError: The other side hung up between two messages.
            FrameError: What came is no message.
            TimeoutError: No whole message came in time.
            OSError: The connection broke.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        fds: list[int] = []

        def read(num_bytes: int) -> bytes:
            self._sock.settimeout(None if deadline is None else max(1e-3, deadline - monotonic()))
            if not self.takes_fds:
                return self._sock.recv(num_bytes)
            data, received, _, _ = socket.recv_fds(self._sock, num_bytes, MAX_FDS)
            for fd in received:
                os.set_inheritable(fd, False)
            fds.extend(received)
            return data

        try:
            return read_message(read, self.max_bytes), fds
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def receive_now(self) -> dict[str, Any] | None:
        """A message, if all of it has arrived; waits for nothing, so that half a message holds up nobody.

        Raises:
            EOFError: The other side hung up.
            FrameError: What came is no message.
            OSError: The connection broke.
        """
        try:
            data = self._sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not data:
            raise EOFError("the other side hung up")
        self._arrived += data
        if len(self._arrived) < HEADER.size:
            return None
        (num_bytes,) = HEADER.unpack_from(self._arrived)
        if num_bytes > self.max_bytes:
            raise FrameError(f"a frame of {num_bytes} bytes; at most {self.max_bytes} are accepted")
        if len(self._arrived) < HEADER.size + num_bytes:
            return None
        body = bytes(self._arrived[HEADER.size : HEADER.size + num_bytes])
        del self._arrived[: HEADER.size + num_bytes]
        return _parse(body)

    def close(self) -> None:
        """Closes this end."""
        self._sock.close()


def pair(max_bytes: int = MAX_FRAME_BYTES) -> tuple[Channel, Channel]:
    """Two connected channels; neither descriptor is inherited by programs."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(ours, max_bytes), Channel(theirs, max_bytes)


def _read_all(read: Callable[[int], bytes], num_bytes: int) -> bytes:
    """So many bytes; fewer only at the end of the stream."""
    data = bytearray()
    while len(data) < num_bytes:
        part = read(min(num_bytes - len(data), _READ_BYTES))
        if not part:
            break
        data += part
    return bytes(data)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = _from_text(body.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise FrameError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise FrameError(f"a JSON object was expected, got {type(message).__name__}")
    return message


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Taken before a cell can put anything in their place: interpreters share the module with their cells.
_to_text = json.JSONEncoder(allow_nan=False).encode
_from_text = json.JSONDecoder(parse_constant=_refuse_constant).decode
