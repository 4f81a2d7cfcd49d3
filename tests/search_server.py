"""A search server on this machine for tests: it answers as told, stalls, breaks and lies."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from http_server import Answer, LocalServer, QuietHandler, released, starting

from agentrl.tools import rate_limit

ROME = {"id": "1", "contents": '"Rome"\nThe capital of Italy.'}
OSLO = {"id": "2", "title": "Oslo", "text": "The capital of Norway."}
GOOD = {"result": [[{"document": ROME, "score": 2.5}, {"document": OSLO, "score": 1}]]}


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


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    fields: Any
    """The body of a POST, the parameters of a GET."""
    headers: dict[str, str]


class Server(LocalServer):
    """Gives its answers one after the other, the last one again and again, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(_Handler)
        self.answers = list(answers)
        self.asked: list[Asked] = []
        self._lock = threading.Lock()

    def next_answer(self, asked: Asked) -> Answer:
        with self._lock:
            self.asked.append(asked)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Handler(QuietHandler):
    def do_GET(self) -> None:
        self._answer(dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True)))

    def do_POST(self) -> None:
        self._answer(self.posted())

    def _answer(self, fields: Any) -> None:
        server = self.server
        assert isinstance(server, Server)
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.next_answer(Asked(self.command, urlsplit(self.path).path, fields, headers))(self)


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
    monkeypatch.setattr(rate_limit, "_hosts", {})  # a port that was used before may be given again
    with starting(monkeypatch, Server) as start:
        yield start
