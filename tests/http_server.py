"""HTTP servers on this machine for tests: they answer as told, stall and hang up."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import pytest

from agentrl import json_service

Answer = Callable[[BaseHTTPRequestHandler], None]


def reply(body: Any, status: int = 200, **headers: str) -> Answer:
    """Answers with bytes, or anything else as JSON."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def stall(handler: BaseHTTPRequestHandler) -> None:
    released(handler).wait(60)
    handler.connection.shutdown(socket.SHUT_RDWR)


def released(handler: BaseHTTPRequestHandler) -> threading.Event:
    """Set when the test is over."""
    server = handler.server
    assert isinstance(server, LocalServer)
    return server.released


class LocalServer(ThreadingHTTPServer):
    """Runs from `start` to `stop`."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, handler: type["QuietHandler"]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class QuietHandler(BaseHTTPRequestHandler):
    """Prints nothing."""

    def posted(self) -> Any:
        """The JSON that came with a POST."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def unused_address() -> Iterator[str]:
    """Host and port that nobody listens at, nor begins to: the port is taken by a socket that never listens."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{place.getsockname()[1]}"


ServerT = TypeVar("ServerT", bound=LocalServer)


@contextlib.contextmanager
def starting(monkeypatch: pytest.MonkeyPatch, make: Callable[..., ServerT]) -> Iterator[Callable[..., ServerT]]:
    """Gives a function that makes and starts servers; they stop at the end. Pauses between attempts are short."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.01)
    servers: list[ServerT] = []

    def start(*args: Any) -> ServerT:
        servers.append(make(*args))
        servers[-1].start()
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.stop()
