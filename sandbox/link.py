"""What a back end gives the rest of the package: a byte stream to a runner inside a sandbox, and an end to it all."""

import contextlib
import select
import socket
import time
from dataclasses import dataclass
from typing import Protocol


class Link(Protocol):
    """The attached stream of one sandbox. One thread talks at a time; any thread may `close`."""

    def send(self, data: bytes, timeout_s: float) -> None:
        """Sends all of `data`.

        Raises:
            TimeoutError: The sandbox does not read.
            OSError: The stream has ended.
        """
        ...

    def receive(self, num_bytes: int, timeout_s: float) -> bytes:
        """The next bytes, at least one and at most `num_bytes`; none at the end of the stream.

        Raises:
            TimeoutError: Nothing came in time.
            OSError: The stream broke.
        """
        ...

    def resize(self, num_sessions: int) -> None:
        """Sets the sandbox's own limits to what so many sessions, each with its limits, may use together.

        Raises:
            OSError: They cannot be set.
        """
        ...

    def is_reachable(self) -> bool:
        """Of a sandbox that is silent: whether what carries the stream works, so that the silence is its own."""
        ...

    def ran_out_of_memory(self) -> bool:
        """Of a stream that ended by itself: whether the kernel killed the sandbox for its memory."""
        ...

    def last_words(self) -> str:
        """The last line that a sandbox whose start failed has written about it; may be empty."""
        ...

    def close(self) -> None:
        """Ends every process in the sandbox and frees what it took, once all of them are gone; safe to call twice."""
        ...

    def abandon(self) -> None:
        """Closes the stream's descriptor and does nothing else: this process is a forked copy of the one that owns it.

        As long as any copy had it open, a sandbox would not notice the death of its owner.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A sandbox in which a runner waits for its code."""

    link: Link
    root: str = "/box"
    """Folder for the sessions' files as the sandbox sees it: private, writable and, where possible, limited in size."""
    max_user_processes: int | None = None
    """What RLIMIT_NPROC of a session's processes is set to; only where their user id is nobody else's."""


class SocketEnd:
    """Sending and receiving with deadlines over a connected stream socket, as `Link` wants it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: bytes, timeout_s: float) -> None:
        """See `Link.send`."""
        self._sock.settimeout(timeout_s)
        self._sock.sendall(data)

    def receive(self, num_bytes: int, timeout_s: float) -> bytes:
        """See `Link.receive`."""
        self._sock.settimeout(timeout_s)
        return self._sock.recv(num_bytes)

    def is_reachable(self) -> bool:
        """True: nothing but the kernel is in between."""
        return True

    def hang_up(self) -> None:
        """Tells the other side that nothing will follow, upon which a runner ends; may be called twice and anywhere."""
        with contextlib.suppress(OSError):  # already closed, or the other side is gone
            self._sock.shutdown(socket.SHUT_WR)

    def other_side_ended(self, limit_s: float) -> bool:
        """Whether the other side closes its end, which it does by ending, within a time."""
        poll = select.poll()
        poll.register(self._sock.fileno(), 0)  # hang-ups are always reported
        deadline = time.monotonic() + limit_s
        while True:
            if poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return True
            if time.monotonic() >= deadline:
                return False

    def abandon(self) -> None:
        """See `Link.abandon`."""
        self._sock.close()
