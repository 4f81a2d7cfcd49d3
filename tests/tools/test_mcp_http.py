"""The client against a small HTTP server without the package `mcp`: keys, refusals, sessions that are forgotten."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from mcp_helpers import call

from agentrl.errors import InfrastructureError
from agentrl.messages import JsonDict
from agentrl.tools import McpTool, Toolbox, ToolStatus, close_mcp_servers, mcp_tools

TOOL = {"name": "echo", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/mcp"
        self.sessions: list[str] = []
        self.refusal: tuple[int, bytes] | None = None
        """What tools/call is answered with instead."""
        self.refuses_all: int | None = None
        self.keys: set[str | None] = set()
        self.calls: list[JsonDict] = []


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method, session = message["method"], self.headers.get("mcp-session-id")
        self.server.keys.add(self.headers.get("Authorization"))
        if self.server.refuses_all:
            self.reply(self.server.refuses_all, b"who are you", "text/plain")
        elif "id" not in message:
            self.reply(202, b"")
        elif method == "initialize":
            about = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
            self.server.sessions.append(f"s{len(self.server.sessions)}")
            self.answer(message, {"result": about}, session=self.server.sessions[-1])
        elif method == "tools/list":
            self.answer(message, {"result": {"tools": [TOOL]}})
        elif method == "tools/call":
            self.server.calls.append(message["params"])
            if self.server.refusal:
                self.reply(*self.server.refusal, "text/html")
            elif message["params"]["arguments"]["text"] == "error":
                self.answer(message, {"error": {"code": -32603, "message": "the tool broke"}})
            else:
                self.answer(message, {"result": {"content": [{"type": "text", "text": session}]}})
        else:
            self.answer(message, {"error": {"code": -32601, "message": "no such method"}})

    def do_GET(self) -> None:
        self.reply(405, b"")

    do_DELETE = do_GET

    def answer(self, message: JsonDict, body: JsonDict, session: str | None = None) -> None:
        self.reply(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], **body}).encode(), session=session)

    def reply(self, status: int, body: bytes, kind: str = "application/json", session: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if session:
            self.send_header("mcp-session-id", session)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        close_mcp_servers()
        server.shutdown()


@pytest.fixture
def tools(server: Server) -> tuple[McpTool, ...]:
    return mcp_tools(url=server.url)


def test_the_key_is_sent_and_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "hush-1234")
    tools = mcp_tools(url=server.url, api_key_env="SHOP_KEY")
    with Toolbox(tools) as toolbox:
        assert call(toolbox, "echo", text="x").ok
    assert server.keys == {"Bearer hush-1234"}
    server.refuses_all = 403
    close_mcp_servers()
    with pytest.raises(InfrastructureError, match="refuses with HTTP status 403") as caught:
        mcp_tools(url=server.url, api_key_env="SHOP_KEY")
    assert "hush" not in str(caught.value) + repr(tools)


@pytest.mark.parametrize("status", [401, 404, 429, 500, 502, 503])
def test_a_refused_call_is_no_fault_of_the_agent(server: Server, tools: tuple[McpTool, ...], status: int) -> None:
    server.refusal = (status, b"<h1>Bad Gateway</h1>")
    with Toolbox(tools) as toolbox, pytest.raises(InfrastructureError, match=f"refuses with HTTP status {status}"):
        call(toolbox, "echo", text="x")
    assert len(server.calls) == 1  # it may have had an effect, so it was not sent again
    server.refusal = None
    with Toolbox(tools) as toolbox:  # and the next episode has a new session
        assert call(toolbox, "echo", text="x").text == "s1"


def test_an_error_that_the_server_answers_is_an_observation(tools: tuple[McpTool, ...]) -> None:
    with Toolbox(tools) as toolbox:
        result = call(toolbox, "echo", text="error")
        assert (result.status, result.text) == (ToolStatus.ERROR, "the tool broke")
        assert call(toolbox, "echo", text="x").text == "s0"
