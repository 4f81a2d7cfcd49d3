"""What breaks at an MCP server, or breaks it: never the agent's fault, always said with the server's last words."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp_helpers import (
    EVERYTHING,
    bare,
    bare_tools,
    call,
    exists,
    pass_deadline_when,
    serving,
    started,
    wait_until,
)

from agentrl.errors import InfrastructureError
from agentrl.messages import JsonDict
from agentrl.tools import Toolbox, ToolStatus, close_mcp_servers, mcp_connection, mcp_process, mcp_servers, mcp_tools


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that ends, or answers, may take its time; that of others is for each test to set."""
    monkeypatch.setattr(mcp_connection, "PROBE_S", 60.0)
    monkeypatch.setattr(mcp_connection, "CLOSE_S", 90.0)
    monkeypatch.setattr(mcp_servers, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(mcp_process, "EXIT_GRACE_S", 60.0)
    yield
    close_mcp_servers()


def received(log: Path, method: str) -> list[JsonDict]:
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [row for row in rows if row["method"] == method]


def calls_of(log: Path, name: str) -> list[JsonDict]:
    return [row for row in received(log, "tools/call") if row["params"]["name"] == name]


def test_a_server_that_dies_in_a_call(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = bare_tools(log)
    first, second = Toolbox(tools), Toolbox(tools)
    with pytest.raises(InfrastructureError) as caught:
        call(first, "die")
    message = str(caught.value)
    assert "bare.py" in message
    assert "closed the connection: it exited with status 9." in message
    assert message.endswith("Its last lines on standard error:\n  dying")
    assert len(calls_of(log, "die")) == 1  # sent once
    for toolbox in (first, second):  # episodes that were going on are over, whatever they call
        with pytest.raises(InfrastructureError, match="exited with status 9"):
            call(toolbox, "echo", text="x")
    assert len(started(log)) == 1
    with Toolbox(tools) as third:  # the next one has a new server
        assert call(third, "echo", text="x").text == "x"
    assert len(started(log)) == 2


def test_a_server_that_is_killed_in_a_call(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = bare_tools(log)
    with Toolbox(tools) as toolbox:
        pid = int(call(toolbox, "pid").text)

        def kill() -> None:
            wait_until(lambda: bool(calls_of(log, "hang")))
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(InfrastructureError, match="it was ended by SIGKILL"):
            call(toolbox, "hang")
        killer.join()


def test_a_server_that_is_killed_between_calls(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = bare_tools(log)
    with Toolbox(tools) as toolbox:
        os.kill(int(call(toolbox, "pid").text), signal.SIGKILL)
        with pytest.raises(InfrastructureError, match="it was ended by SIGKILL"):
            call(toolbox, "echo", text="x")
        with pytest.raises(InfrastructureError):
            call(toolbox, "pid")
    assert calls_of(log, "echo") == []


def test_a_slow_call_is_cancelled_by_a_notification_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    pass_deadline_when(lambda: bool(calls_of(log, "hang")), 0.2, monkeypatch)
    with Toolbox(bare_tools(log, deadline_s=0.2)) as toolbox:
        assert call(toolbox, "hang").status is ToolStatus.ERROR
    with Toolbox(bare_tools(log)) as toolbox:
        assert call(toolbox, "echo", text="still here").ok
    (hung,) = calls_of(log, "hang")
    (cancelled,) = received(log, "notifications/cancelled")
    assert cancelled["params"]["requestId"] == hung["id"]
    assert len(started(log)) == 1


def test_a_server_that_does_not_react_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(mcp_connection, "PROBE_S", 0.5)
    monkeypatch.setattr(mcp_process, "EXIT_GRACE_S", 0.3)
    pass_deadline_when(lambda: bool(calls_of(log, "freeze")), 0.2, monkeypatch)
    with (
        Toolbox(bare_tools(log, deadline_s=0.2)) as toolbox,
        pytest.raises(InfrastructureError, match="does not answer"),
    ):
        call(toolbox, "freeze")
    assert wait_until(lambda: not exists(started(log)[0]))
    with Toolbox(bare_tools(log)) as toolbox:
        assert call(toolbox, "echo", text="x").ok


def test_junk_on_standard_output_is_passed_over(tmp_path: Path) -> None:
    tools = bare_tools(tmp_path / "log", "junk")
    with Toolbox(tools) as toolbox:
        assert call(toolbox, "echo", text="x").text == "x"
        with pytest.raises(InfrastructureError, match=r"It wrote '\{not json' on its standard output"):
            call(toolbox, "die")


def test_a_server_that_ends_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(InfrastructureError) as caught:
        bare_tools(log, "exit", "3")
    assert "it exited with status 3." in str(caught.value)
    assert str(caught.value).endswith("standard error:\n  Traceback: no database\n  set DATABASE_URL")
    assert len(started(log)) == 1


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(mcp_process, "EXIT_GRACE_S", 0.3)
    pass_deadline_when(lambda: log.exists() and bool(started(log)), 0.3, monkeypatch)
    with pytest.raises(InfrastructureError, match=r"did not answer within 0\.3 s of its start"):
        bare_tools(log, "mute", start_s=0.3)
    assert wait_until(lambda: not exists(started(log)[0]))


def test_restarts_are_bounded(tmp_path: Path) -> None:
    log, program = tmp_path / "log", tmp_path / "server"
    program.write_text(f"#!/bin/sh\nexec {' '.join(bare(log))}\n")
    program.chmod(0o755)
    tools = mcp_tools(command=str(program), tools=["echo", "die"])
    with Toolbox(tools) as toolbox, pytest.raises(InfrastructureError):
        call(toolbox, "die")
    program.write_text(f"#!/bin/sh\nexec {' '.join(bare(log, 'exit', '4'))}\n")
    with Toolbox(tools) as toolbox, pytest.raises(InfrastructureError, match="status 4"):
        call(toolbox, "echo", text="x")
    assert len(started(log)) == 1 + mcp_servers.MAX_STARTS
    program.unlink()
    with Toolbox(tools) as toolbox, pytest.raises(InfrastructureError, match="cannot be started"):
        call(toolbox, "echo", text="x")  # at the beginning this would have been a ConfigError


def test_an_answer_against_the_protocol(tmp_path: Path) -> None:
    with Toolbox(bare_tools(tmp_path / "log")) as toolbox:
        with pytest.raises(InfrastructureError, match="gave a wrong answer"):
            call(toolbox, "wrong")
        assert call(toolbox, "echo", text="x").ok


def test_a_server_on_http_that_dies_in_a_call() -> None:
    with serving(*EVERYTHING, "http") as (url, process):
        shared, own = (mcp_tools(url=url, tools=["session", "die"], per_episode=own) for own in (False, True))
        toolboxes = [Toolbox(tools) for tools in (shared, shared, own, own)]
        sessions = [call(toolbox, "session").text for toolbox in toolboxes]
        assert sessions[0] == sessions[1]
        assert len(set(sessions[1:])) == 3
        assert [call(toolbox, "session").text for toolbox in toolboxes] == sessions
        with pytest.raises(InfrastructureError, match=f"The MCP server `{url}` failed"):
            call(toolboxes[2], "die", status=1)
        process.wait()
        for toolbox in (*toolboxes, Toolbox(shared), Toolbox(own)):
            with pytest.raises(InfrastructureError, match=f"The MCP server `{url}` failed"):
                call(toolbox, "session")
            toolbox.close()
    with pytest.raises(InfrastructureError, match="ConnectError"):
        mcp_tools(url=url)
