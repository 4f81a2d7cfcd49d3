"""Tools of real MCP servers, on standard streams and on HTTP: what is listed, called and answered."""

import copy
import functools
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp_helpers import EVERYTHING, bare, bare_tools, call, pass_deadline_when, serving, wait_until

from agentrl.chat.tool_calls import format_tool_call
from agentrl.envs import make
from agentrl.errors import ConfigError, InfrastructureError, UnknownNameError
from agentrl.messages import ToolCall
from agentrl.tools import McpTool, Toolbox, ToolStatus, close_mcp_servers, make_tools, mcp_connection, mcp_tools

NAMES = ("add", "plot", "fail", "picture")


@pytest.fixture(scope="module", params=["stdio", "http"])
def tools(request: pytest.FixtureRequest) -> Iterator[tuple[McpTool, ...]]:
    with ExitStack() as stack:
        stack.callback(close_mcp_servers)
        server: dict[str, Any] = {"command": EVERYTHING}
        if request.param == "http":
            server = {"url": stack.enter_context(serving(*EVERYTHING, "http"))[0]}
        yield mcp_tools(**server, tools=NAMES) + mcp_tools(**server, tools=["sleep"], deadline_s=0.5)


@pytest.fixture
def toolbox(tools: tuple[McpTool, ...]) -> Iterator[Toolbox]:
    with Toolbox(tools) as opened:
        yield opened


@functools.cache
def listed() -> dict[str, tuple[str | None, object]]:
    """What the server says of its tools, without agentrl in between."""

    async def ask() -> dict[str, tuple[str | None, object]]:
        async with Client(StdioServerParameters(command=EVERYTHING[0], args=list(EVERYTHING[1:]))) as client:
            return {tool.name: (tool.description, tool.input_schema) for tool in (await client.list_tools()).tools}

    return anyio.run(ask)


def test_names_descriptions_and_schemas_are_the_servers(tools: tuple[McpTool, ...]) -> None:
    assert [tool.name for tool in tools] == [*NAMES, "sleep"]
    assert {tool.name: (tool.description, tool.parameters) for tool in tools}.items() <= listed().items()
    (plot,) = (tool for tool in tools if tool.name == "plot")
    assert plot.parameters["properties"]["points"]["items"] == {"$ref": "#/$defs/Point"}  # nothing was resolved or cut
    assert plot.parameters["$defs"]["Point"]["properties"]["y"]["minimum"] == 0


def test_calls(toolbox: Toolbox) -> None:
    result = call(toolbox, "add", a=2, b=3)
    assert (result.status, result.text) == (ToolStatus.OK, "5")
    assert call(toolbox, "plot", points=[{"x": 1}, {"x": 2, "y": 3}], color="blue").text == "2 blue"


def test_arguments_are_checked_by_the_whole_schema(toolbox: Toolbox) -> None:
    result = call(toolbox, "plot", points=[{"x": 1, "y": -1}, {"y": "2"}], color="green", colour="red")
    assert result.status is ToolStatus.INVALID_CALL
    assert result.text.splitlines() == [
        "Wrong arguments for tool 'plot':",
        'color: should be one of "red", "blue", got "green"',
        "points[0].y: -1 is less than the minimum of 0",
        "points[1].x: missing",
        'points[1].y: should be of type integer, got "2"',
        "colour: unknown argument. Did you mean 'color'?",
    ]


def test_an_error_of_the_tool_is_an_observation(toolbox: Toolbox) -> None:
    result = call(toolbox, "fail", reason="no such row")
    assert result.status is ToolStatus.ERROR
    assert result.text == "Error executing tool fail: no such row"  # in the server's words
    assert call(toolbox, "add", a=1, b=1).ok


def test_what_is_no_text_is_said_in_text(toolbox: Toolbox) -> None:
    assert call(toolbox, "picture").text.splitlines() == [
        "A cat.",
        "[image image/png, 4 bytes, not shown]",
        "[resource file:///r.csv, text/csv: r.csv: A table]",
        "[resource file:///a.txt]",
        "inside",
        "[resource file:///b.bin, 3 bytes, not shown]",
    ]


def test_a_call_that_takes_too_long_is_cancelled_at_the_server(
    toolbox: Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setattr(mcp_connection, "PROBE_S", 60.0)
    pass_deadline_when(mark.exists, 0.5, monkeypatch)
    result = call(toolbox, "sleep", seconds=600.0, mark=str(mark))
    assert result.status is ToolStatus.ERROR
    assert result.text == "Tool 'sleep' gave no result within 0.5 s; the call was cancelled."
    assert wait_until(lambda: mark.read_text() == "cancelled")  # written by the server's handler
    assert call(toolbox, "add", a=1, b=1).text == "2"


def test_a_tool_is_called_only_when_it_is_open(tools: tuple[McpTool, ...]) -> None:
    with pytest.raises(InfrastructureError, match=r"before open\(\)"):
        tools[0].call({"a": 1, "b": 2})


def test_tools_are_copied_and_pickled_without_their_connection(tools: tuple[McpTool, ...]) -> None:
    assert copy.deepcopy(tools[0]) is tools[0]
    with Toolbox(pickle.loads(pickle.dumps(tools))) as toolbox:
        assert call(toolbox, "add", a=1, b=1).text == "2"


def test_what_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert [tool.description for tool in bare_tools(log, tools=["pid"])] == ["pid"]  # the server describes nothing
    with pytest.raises(ConfigError, match=r"has no tool 'echoo'\. Did you mean 'echo'"):
        bare_tools(log, tools=["echoo"])
    with pytest.raises(ConfigError, match=r"write \['echo'\]"):
        bare_tools(log, tools="echo")
    with pytest.raises(ConfigError, match=r"Tool name 'a\.b' is not usable"):
        bare_tools(log, tools={"echo": "a.b"})
    with pytest.raises(ConfigError, match=r"cannot be started: .*no-such-program"):
        mcp_tools(command=["/no-such-program"])
    with pytest.raises(ConfigError, match="one of the two"):
        mcp_tools()
    with pytest.raises(ConfigError, match="deadline_s of MCP tools must be positive"):
        bare_tools(log, deadline_s=0)
    close_mcp_servers()


def test_a_name_that_agentrl_does_not_take_is_changed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'files\.read' is not usable.*tools=\{'files\.read': 'files_read'\}"):
        bare_tools(tmp_path / "log", tools=None)
    with Toolbox(bare_tools(tmp_path / "log", tools={"files.read": "files_read", "echo": "say"})) as toolbox:
        assert [schema["function"]["name"] for schema in toolbox.schemas] == ["files_read", "say"]
        assert (call(toolbox, "files_read").text, call(toolbox, "say", text="x").text) == ("content", "x")
    close_mcp_servers()


def test_one_entry_of_a_config_gives_all_tools(tmp_path: Path) -> None:
    tools = make_tools("mcp", {"command": list(bare(tmp_path / "log")), "tools": ["pid", "echo"]})
    assert [tool.name for tool in tools] == ["pid", "echo"]
    with pytest.raises(ConfigError, match="refuses its options"):
        make_tools("mcp", {"comand": "x"})
    with pytest.raises(UnknownNameError):
        make_tools("mpc")
    close_mcp_servers()


def test_an_environment_plays_with_them(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"question": "Say x.", "answer": "x"}\n')
    entry = {"mcp": {"command": list(bare(tmp_path / "log")), "tools": ["echo", "die"]}}
    env = make("Dataset-v0", path={"train": str(tasks)}, tools=["calculator", entry])
    _, info = env.reset(seed=0)
    assert [tool["function"]["name"] for tool in info["tools"]] == ["calculator", "echo", "die"]
    observation, *_ = env.step(format_tool_call(ToolCall("echo", {"text": "x"})))
    assert observation == "x"
    with pytest.raises(InfrastructureError):  # what the trainer counts as an invalid episode
        env.step(format_tool_call(ToolCall("die", {})))
    env.reset(seed=0)
    observation, *_ = env.step(format_tool_call(ToolCall("echo", {"text": "again"})))
    assert observation == "again"
    env.close()
    close_mcp_servers()
