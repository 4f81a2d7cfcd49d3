"""A chat-completions server on this machine that answers what a function says."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import pytest

from agentrl import json_service

Body: TypeAlias = dict[str, Any]
Action: TypeAlias = Callable[[BaseHTTPRequestHandler], None]
Brain: TypeAlias = Callable[[Body], "Body | Action"]
"""From a request to the answer, or to something done to the connection."""


def says(content: str | None, *calls: tuple[str, str], finish: str | None = None, tokens: int | None = 7) -> Body:
    """A completion; `calls` are names and argument strings of structured calls."""
    message: Body = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": f"id-{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for n, (name, arguments) in enumerate(calls)
        ]
    answer: Body = {"choices": [{"message": message, "finish_reason": finish or ("tool_calls" if calls else "stop")}]}
    if tokens is not None:
        answer["usage"] = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}
    return answer


def replies(body: Any, status: int = 200, **headers: str) -> Action:
    """Answers with bytes, or anything else as JSON."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return act


def refuses(text: str, status: int = 400) -> Action:
    """An error as OpenAI and vLLM send it."""
    return replies({"error": {"message": text}}, status)


def hangs_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def stalls(handler: BaseHTTPRequestHandler) -> None:
    handler.server.released.wait(60)  # type: ignore[attr-defined]
    handler.connection.shutdown(socket.SHUT_RDWR)


class ModelServer(ThreadingHTTPServer):
    """Runs from `start` to `stop` and keeps what it was asked."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, brain: Brain) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.brain = brain
        self.bodies: list[Body] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def start(self) -> "ModelServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, ModelServer)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append(body)
        server.keys.append(self.headers["Authorization"])
        answer = server.brain(body) if self.path == "/v1/chat/completions" else refuses(f"no page {self.path}", 404)
        (answer if callable(answer) else replies(answer))(self)

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Brain], ModelServer]]:
    """Gives a function that starts servers; they stop at the end. Pauses between attempts are short."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(json_service, "FIRST_PAUSE_S", 0.01)
    servers: list[ModelServer] = []

    def start(brain: Brain) -> ModelServer:
        servers.append(ModelServer(brain).start())
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.stop()
