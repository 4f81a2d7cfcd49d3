"""A chat-completions server on this machine that answers what a function says."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import pytest
from http_server import Answer, LocalServer, QuietHandler, reply, starting

Body: TypeAlias = dict[str, Any]
Brain: TypeAlias = Callable[[Body], "Body | Answer"]
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


def refuses(text: str, status: int = 400) -> Answer:
    """An error as OpenAI and vLLM send it."""
    return reply({"error": {"message": text}}, status)


class ModelServer(LocalServer):
    """Runs from `start` to `stop` and keeps what it was asked."""

    def __init__(self, brain: Brain) -> None:
        super().__init__(_Handler)
        self.brain = brain
        self.bodies: list[Body] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"{super().url}/v1"


class _Handler(QuietHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, ModelServer)
        body = self.posted()
        server.bodies.append(body)
        server.keys.append(self.headers["Authorization"])
        answer = server.brain(body) if self.path == "/v1/chat/completions" else refuses(f"no page {self.path}", 404)
        (answer if callable(answer) else reply(answer))(self)


def serving(monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[Callable[[Brain], ModelServer]]:
    """Gives a function that starts servers; they stop at the end. Pauses between attempts are short."""
    return starting(monkeypatch, ModelServer)
