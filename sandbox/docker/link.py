"""The stream to a runner in a container, and the container's end."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from agentrl.errors import InfrastructureError
from agentrl.sandbox.core import SandboxUnavailableError
from agentrl.sandbox.docker.engine import Engine
from agentrl.sandbox.docker.stream import Demultiplexer

_RECEIVE_BYTES = 1 << 16
_PING_S = 10.0


class DockerLink:
    """The attached stream of one container, see `Link`.

    Args:
        engine: Where the container is.
        container: Its id.
        connection: To its standard streams.
        total_limits: Bytes of memory and number of tasks that it may use when so many sessions live in it.
    """

    def __init__(
        self,
        engine: Engine,
        container: str,
        connection: socket.socket,
        total_limits: Callable[[int], tuple[int, int]],
    ) -> None:
        self._engine = engine
        self._container = container
        self._connection = connection
        self._total_limits = total_limits
        self._room_for = 1
        self._demultiplexer = Demultiplexer()
        self._output = b""
        self._close_lock = threading.Lock()
        self._is_closed = False

    def send(self, data: bytes, timeout_s: float) -> None:
        """See `Link.send`."""
        self._connection.settimeout(timeout_s)
        self._connection.sendall(data)

    def receive(self, num_bytes: int, timeout_s: float) -> bytes:
        """See `Link.receive`."""
        deadline = time.monotonic() + timeout_s
        while not self._output:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError("the sandbox does not answer")
            self._connection.settimeout(remaining_s)
            data = self._connection.recv(_RECEIVE_BYTES)
            if not data:
                return b""
            self._output = self._demultiplexer.feed(data)
        taken, self._output = self._output[:num_bytes], self._output[num_bytes:]
        return taken

    def resize(self, num_sessions: int) -> None:
        """See `Link.resize`. An update takes 20 ms, so room is made for a power of two."""
        room_for = 1 << (num_sessions - 1).bit_length()
        if room_for <= self._room_for:
            return
        try:
            client = self._engine.client()
            with self._engine.errors("raise the limits of a container"):
                self._engine.dialect.raise_limits(client, self._container, *self._total_limits(room_for))
        except InfrastructureError as error:
            raise OSError(str(error)) from error
        self._room_for = room_for

    def is_reachable(self) -> bool:
        """See `Link.is_reachable`: whether the engine answers."""
        try:
            client = self._engine.client()
            with self._engine.errors("answer a ping"):
                return bool(client.api.get(f"{client.api.base_url}/_ping", timeout=_PING_S).ok)
        except InfrastructureError:
            return False

    def ran_out_of_memory(self) -> bool:
        """See `Link.ran_out_of_memory`."""
        try:
            client = self._engine.client()
            with self._engine.errors("tell how a container ended"):
                return self._engine.dialect.was_killed_for_memory(client, self._container)
        except InfrastructureError:
            return False  # an engine that is gone itself

    def last_words(self) -> str:
        """See `Link.last_words`."""
        return self._demultiplexer.last_error_line()

    def close(self) -> None:
        """See `Link.close`."""
        with self._close_lock:
            if self._is_closed:
                return
            self._is_closed = True
            with contextlib.suppress(OSError):  # the other side is gone
                self._connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
            with contextlib.suppress(InfrastructureError):  # an engine that is gone; one that comes back removes it
                self._engine.remove(self._engine.client(), self._container)
            self._connection.close()

    def abandon(self) -> None:
        """See `Link.abandon`."""
        self._connection.close()


def attach(client: Any, container: str) -> socket.socket:
    """A connection to the standard streams of a container that is not started yet, so that nothing is missed.

    Raises:
        SandboxUnavailableError: The engine is reached in a way that gives no plain connection.
    """
    # Without the last, Podman would look for keys in the data by which a user asks to be detached.
    parameters = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1, "detachKeys": ""}
    stream = client.api.attach_socket(container, params=parameters)
    if not isinstance(stream, socket.SocketIO):
        raise SandboxUnavailableError(
            f"The engine at {client.api.base_url} is reached by TLS or ssh, which cannot carry a sandbox. Forward its "
            "socket instead (`ssh -nNT -L /tmp/engine.sock:/var/run/docker.sock HOST`) and set "
            "DOCKER_HOST=unix:///tmp/engine.sock."
        )
    connection = socket.socket(fileno=os.dup(stream.fileno()))
    stream._response.close()  # type: ignore[attr-defined]  # where the SDK keeps its own copy open
    return connection
