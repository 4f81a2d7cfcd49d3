"""agentrl's tools served over MCP: to agentrl itself, and to a client that speaks the bare protocol."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mcp_helpers import SERVERS, call, serving, wait_until
from mcp_servers.served_tools import TOOLS
from typer.testing import CliRunner

from agentrl.cli.main import app
from agentrl.errors import InfrastructureError
from agentrl.messages import JsonDict
from agentrl.tools import McpTool, Toolbox, ToolStatus, calculator, close_mcp_servers, mcp_tools

SERVE = (sys.executable, "-m", "agentrl.cli", "serve-tools", "calculator", "served_tools:TOOLS")
CALLS: tuple[tuple[str, JsonDict], ...] = (
    ("calculator", {"expression": "1/3 + 2"}),
    ("calculator", {"expression": "1/0"}),
    ("calculator", {"expression": 7}),
    ("total", {"items": [{"name": "a", "price": 1.5}, {"name": "é", "price": 2}]}),
    ("total", {"items": [{"name": "a"}], "currency": "GBP"}),
    ("total", {"item": []}),
    ("divide", {"a": 7, "b": 2}),
    ("divide", {"a": 7, "b": 0}),
    ("crash", {"how": "value"}),
    ("crash", {"how": "exit"}),
    ("stall", {}),
    ("notebook", {"line": "eggs"}),
    ("notebook", {"line": "tea\n\u2028\U0001f600"}),
    ("no_such_tool", {}),
)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_mcp_servers()


def test_served_tools_answer_as_they_do_in_process() -> None:
    here, there = (calculator, *TOOLS), mcp_tools(command=SERVE, cwd=str(SERVERS))
    with Toolbox(here) as near, Toolbox(there) as far:
        assert far.schemas == near.schemas
        for name, arguments in CALLS:
            expected, result = call(near, name, **arguments), call(far, name, **arguments)
            late = expected.status is ToolStatus.TIMEOUT  # to the client, an error like others
            assert result.status is (ToolStatus.ERROR if late else expected.status), (name, arguments)
            if expected.status is not ToolStatus.INVALID_CALL:  # both say what is wrong, from two kinds of schema
                assert result.text == expected.text
        for toolbox in (near, far):
            with pytest.raises(InfrastructureError, match="the database is gone"):
                call(toolbox, "crash", how="broken")


def test_sessions_on_http_have_tools_of_their_own(tmp_path: Path) -> None:
    with serving(*SERVE, "--http", "127.0.0.1:0", cwd=SERVERS) as (url, process):
        shared, own = (mcp_tools(url=url, per_episode=own) for own in (False, True))
        with Toolbox(shared) as a, Toolbox(shared) as b, Toolbox(own) as c, Toolbox(own) as d:
            assert [call(toolbox, "notebook", line="x").text for toolbox in (a, b, c, d, c)] == [
                '["x"]',
                '["x", "x"]',  # one session, which the two episodes share
                '["x"]',
                '["x"]',
                '["x", "x"]',
            ]
        count = (os.cpu_count() or 1) + 6
        with ThreadPoolExecutor(count) as pool, Toolbox(own) as toolbox:
            marks = [tmp_path / str(number) for number in range(count)]
            results = [pool.submit(_hang, own, mark) for mark in marks]
            assert wait_until(lambda: all(mark.exists() for mark in marks), 60.0)
            # More calls hang than an event loop's own pool of threads has room for.
            assert call(toolbox, "calculator", expression="6*7").text == "42"
            for mark in marks:
                mark.with_suffix(".go").touch()
            assert [result.result() for result in results] == ["let go"] * count
        process.terminate()
        assert process.stderr is not None
        assert process.stderr.read().count("closed with ['x'") == 3  # two when the clients left, one now


def _hang(tools: Sequence[McpTool], mark: Path) -> str:
    with Toolbox(tools) as toolbox:
        return call(toolbox, "hang", mark=str(mark)).text


def test_standard_output_belongs_to_the_protocol() -> None:
    asked = [
        {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}} | ABOUT},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "shout", "arguments": {"text": "hello"}}},
        {"id": 3, "method": "tools/call", "params": {"name": "notebook", "arguments": {"line": "y"}}},
        {"id": 4, "method": "tools/call", "params": {"name": "divide", "arguments": {"a": 1, "b": 0}}},
    ]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(SERVE, cwd=SERVERS, env=buffered, text=True, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = {}
        for message in asked:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            process.stdin.flush()
            if "id" in message:
                answer = json.loads(process.stdout.readline())
                answers[answer["id"]] = answer["result"]
        rest, errors = process.communicate()  # which ends its input
    assert (rest, process.returncode) == ("", 0)
    assert errors.count("hello") == 3
    assert "closed with ['y']" in errors
    assert answers[2]["content"] == [{"type": "text", "text": "done"}]
    assert not answers[2].get("isError")
    assert answers[4]["content"] == [{"type": "text", "text": "b must not be 0, got 0"}]
    assert answers[4]["isError"] is True


ABOUT = {"clientInfo": {"name": "test", "version": "1"}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calcullator"], "Unknown tool 'calcullator'. Did you mean 'calculator'?"),
        (["no_module:x"], "names a module that cannot be imported"),
        (["json:loads"], "which is no tool"),
        (["calculator", "--tool-arg", "x"], "--tool-arg looks like NAME.KEY=VALUE"),
        (["calculator", "--tool-arg", "search.top_k=1"], "the tool 'search', which is not served"),
        (["calculator", "--tool-arg", "calculator.top_k=1"], "refuses its options"),
        (["calculator", "calculator"], "Two tools are called 'calculator'"),
        (["calculator", "--http", "8000"], "--http looks like HOST:PORT"),
        (["calculator", "--http", "256.0.0.1:80"], "Nothing can be served at"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["serve-tools", *words])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
