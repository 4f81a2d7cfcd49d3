"""A key is nowhere but in the header that carries it, whatever the server does with it."""

import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_server import Answer, hang_up, reply, stall
from search_server import Serve, serving

from agentrl.errors import InfrastructureError
from agentrl.messages import ToolCall
from agentrl.tools import SearchTool, Toolbox, web_search

KEY = "5ECR3T/k3y+with=signs"
PAGES = {"organic": [{"title": f"Your key is {KEY}", "link": f"http://p/{KEY}", "snippet": f"a {KEY} b"}]}
SLASHES = json.dumps(PAGES).replace("/", "\\/").encode()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("SERPER_API_KEY", KEY)
    with serving(monkeypatch) as start:
        yield start


def everything_written(error: BaseException) -> str:
    """An error in all forms in which it may reach a terminal, a log or another process."""
    with_locals = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "\n".join([str(error), repr(error), *with_locals.format(), repr(pickle.dumps(error)), repr(vars(error))])


def holds_key(text: str) -> bool:
    plain = text.replace("\\", "")
    return KEY in plain or KEY.split("/")[1] in plain


def call(tool: SearchTool, query: str = "x") -> str:
    with Toolbox([tool]) as toolbox:
        return toolbox.call(ToolCall("search", {"query": query})).text


@pytest.mark.parametrize("mode", ["read_write", "record"])
@pytest.mark.parametrize("body", [PAGES, SLASHES])
def test_an_answer_that_repeats_the_key(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, body: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(reply(body))
    tool = web_search("serper", server.url, cache=tmp_path / "a.db", mode=mode)
    assert call(tool) == call(tool) == "[1] Your key is ***: a *** b"
    assert server.asked[0].headers["x-api-key"] == KEY  # it was there to be found
    files = [file.read_bytes().decode(errors="replace") for file in tmp_path.iterdir()]
    assert "a *** b" in "".join(files)
    shown = [repr(tool), repr(vars(tool)), repr(pickle.dumps(tool)), caplog.text, *files]
    assert [text for text in shown if holds_key(text)] == []
    assert "HTTP Request: POST" in caplog.text  # the client's own log was on


@pytest.mark.parametrize(
    "answer",
    [
        reply(f"wrong key {KEY}".encode(), 401),
        reply(SLASHES, 403),
        reply(f"overloaded, {KEY}".encode(), 503),
        reply({"message": KEY}),
        reply(f"<html>{KEY}".encode()),
        reply(b"", 302, Location="http://127.0.0.1:1/"),
        reply(KEY.encode(), Content_Encoding="br"),
        reply(KEY.encode() + b" " * (5 << 20)),
        hang_up,
        stall,
    ],
)
def test_a_failure_does_not_show_the_key(serve: Serve, caplog: pytest.LogCaptureFixture, answer: Answer) -> None:
    caplog.set_level(logging.DEBUG)
    tool = web_search("serper", serve(answer).url, deadline_s=0.2)
    with pytest.raises(InfrastructureError) as failure:
        call(tool)
    assert not holds_key(everything_written(failure.value))
    assert not holds_key(caplog.text)


def test_the_search_for_keys_finds_them() -> None:
    def fail(key: str) -> None:
        raise ValueError("oh")

    with pytest.raises(ValueError, match="oh") as failure:
        fail(KEY)
    assert holds_key(everything_written(failure.value))  # in the locals of a frame
    assert holds_key(SLASHES.decode())


def test_redirects_do_not_carry_the_key_to_another_host(serve: Serve) -> None:
    thief = serve(reply(PAGES))
    for status in (301, 302, 303, 307, 308):
        server = serve(reply(b"", status, Location=f"{thief.url}/search"))
        with pytest.raises(InfrastructureError, match=f"HTTP status {status}"):
            call(web_search("serper", server.url))
    assert thief.asked == []
