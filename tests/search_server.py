"""A search server on this machine for tests: it answers as told, stalls, breaks and lies."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from agentrl import json_service
from agentrl.tools import rate_limit

ROME = {"id": "1", "contents": '"Rome"\nThe capital of Italy.'}
OSLO = {"id": "2", "title": "Oslo", "text": "The capital of Norway."}
GOOD = {"result": [[{"document": ROME, "score": 2.5}, {"document": OSLO, "score": 1}]]}

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


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Closes with a TCP reset instead of an end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.rfile.close()
    handler.wfile.close()
    handler.connection.close()


def break_off(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"result": [[')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def stall(handler: BaseHTTPRequestHandler) -> None:
    released(handler).wait(60)
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    _drip(handler)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _drip(handler)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    with contextlib.suppress(OSError):
        for _ in range(100):  # five seconds
            if released(handler).wait(0.05):
                return
            handler.wfile.write(b" ")
            handler.wfile.flush()


def flood(handler: BaseHTTPRequestHandler) -> None:
    """Promises a gigabyte, and breaks off after 32 MiB."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 30))
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(512):
            handler.wfile.write(b" " * (1 << 16))
        handler.connection.shutdown(socket.SHUT_RDWR)


def released(handler: BaseHTTPRequestHandler) -> threading.Event:
    """Set when the test is over."""
    server = handler.server
    assert isinstance(server, Server)
    return server.released


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    fields: Any
    """The body of a POST, the parameters of a GET."""
    headers: dict[str, str]


class Server(ThreadingHTTPServer):
    """Gives its answers one after the other, the last one again and again, and keeps what it was asked."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self.released = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_answer(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def start(self) -> "Server":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True)))

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, fields: Any) -> None:
        server = self.server
        assert isinstance(server, Server)
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.next_answer(Asked(self.command, urlsplit(self.path).path, fields, headers))(self)

    def log_message(self, *args: Any) -> None:
        pass


class SkippingTime:
    """Stands in for the module `time` where pauses are made: a pause is written down and over at once."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def monotonic(self) -> float:
        return time.monotonic() + sum(self.pauses)


Serve = Callable[..., Server]


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Gives a function that starts servers; they stop at the end. Pauses between attempts are short."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(rate_limit, "_hosts", {})  # a port that was used before may be given again
    servers: list[Server] = []

    def start(*answers: Answer) -> Server:
        servers.append(Server(*answers).start())
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.stop()
