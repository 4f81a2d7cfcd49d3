"""Who uses which server, and that none is left behind: no process, thread, descriptor."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from mcp_helpers import ROOT, bare, bare_tools, call, exists, started, wait_until

from agentrl.errors import ForkError, InfrastructureError
from agentrl.tools import McpTool, Toolbox, close_mcp_servers, mcp_connection, mcp_process, mcp_tools


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    close_mcp_servers()


def test_episodes_share_a_server_and_its_forks_do_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = bare_tools(log)
    with Toolbox(tools) as first, Toolbox(bare_tools(log)) as second, first.fork() as third:
        assert len({call(toolbox, "pid").text for toolbox in (first, second, third)}) == 1
    assert len(started(log)) == 1
    with Toolbox(tools) as later:
        assert call(later, "pid").text == str(started(log)[0])  # closing an episode ends nothing
    close_mcp_servers()
    assert not exists(started(log)[0])


def test_many_episodes_at_a_time(tmp_path: Path) -> None:
    tools = bare_tools(tmp_path / "log")

    def episode(number: int) -> list[str]:
        with Toolbox(tools) as toolbox:
            return [call(toolbox, "echo", text=f"{number}.{i}").text for i in range(10)]

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(episode, range(64))) == [[f"{n}.{i}" for i in range(10)] for n in range(64)]
    assert len(started(tmp_path / "log")) == 1


def test_an_episode_has_one_server_of_its_own_for_all_tools(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = bare_tools(log, per_episode=True, tools=["remember", "pid", "echo"])
    assert not exists(started(log)[0])  # it has told its tools, and that was all
    with Toolbox(reversed(tools)) as first, Toolbox(tools) as second:
        assert len(started(log)) == 1  # none is started before it is called
        pids = [call(toolbox, "pid").text for toolbox in (first, second)]
        assert call(first, "remember", text="a").text == "a"
        assert call(second, "remember", text="b").text == "b"
        assert call(first, "remember", text="c").text == "a,c"
        assert pids == [str(pid) for pid in started(log)[1:]]
        with pytest.raises(ForkError, match="server of its own"):
            first.fork()
    assert not any(map(exists, started(log)))


def test_episodes_opened_in_many_threads_get_one_server_each(tmp_path: Path) -> None:
    tools = bare_tools(tmp_path / "log", per_episode=True, tools=["remember", "pid"])

    def episode(number: int) -> tuple[str, str]:
        with Toolbox(tools) as toolbox:
            call(toolbox, "remember", text=str(number))
            return call(toolbox, "remember", text="x").text, call(toolbox, "pid").text

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(episode, range(24)))
    assert [text for text, _ in seen] == [f"{number},x" for number in range(24)]
    assert len({pid for _, pid in seen}) == 24
    assert not any(map(exists, started(tmp_path / "log")))


def test_half_of_a_server_with_state_is_refused(tmp_path: Path) -> None:
    tools = bare_tools(tmp_path / "log", per_episode=True, tools=["remember", "pid"])
    with Toolbox(tools[:1]) as toolbox, pytest.raises(InfrastructureError, match=r"it lacks pid\. Choose with tools="):
        call(toolbox, "remember", text="x")
    with Toolbox(tools) as toolbox:
        assert call(toolbox, "remember", text="x").ok


def resources() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def test_fifty_rounds_leave_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = bare_tools(log, per_episode=True, tools=["echo"])
    before = resources()
    for number in range(50):
        with Toolbox(tools) as toolbox:
            assert call(toolbox, "echo", text=str(number)).text == str(number)
    # Less is fine: what other tests have left to itself may end meanwhile.
    assert wait_until(lambda: all(now <= then for now, then in zip(resources(), before, strict=True)))
    assert len(set(started(log))) == 51
    assert not any(Path(f"/proc/{pid}").exists() for pid in started(log))  # no zombie either


def test_a_server_that_ignores_every_hint_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    ended_within = mcp_process.ServerProcess._ended_within

    async def ended_after_the_hint(process: mcp_process.ServerProcess, limit_s: float) -> bool:
        """Counts the time only from when the server has seen the end of its input."""
        ends_at = time.monotonic() + 60
        while "end of input" not in log.read_text() and time.monotonic() < ends_at:
            await asyncio.sleep(0.01)
        return await ended_within(process, limit_s)

    monkeypatch.setattr(mcp_process, "EXIT_GRACE_S", 0.3)
    monkeypatch.setattr(mcp_process, "TERM_GRACE_S", 0.1)
    monkeypatch.setattr(mcp_process, "_KILL_S", 60.0)
    monkeypatch.setattr(mcp_connection, "CLOSE_S", 90.0)
    monkeypatch.setattr(mcp_process.ServerProcess, "_ended_within", ended_after_the_hint)
    bare_tools(log, "ignore-eof")
    assert exists(started(log)[0])
    close_mcp_servers()
    assert "end of input" in log.read_text()
    assert not exists(started(log)[0])


def test_children_of_a_server_end_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"sleep 600 & echo $! > {child}; exec {shlex.join(bare(tmp_path / 'log'))}"
    with Toolbox(mcp_tools(command=["sh", "-c", script], tools=["echo"])) as toolbox:
        assert call(toolbox, "echo", text="x").ok
    assert exists(int(child.read_text()))
    close_mcp_servers()
    assert wait_until(lambda: not exists(int(child.read_text())))


CLIENT = """
import json, sys, time
from agentrl.messages import ToolCall
from agentrl.tools import Toolbox, mcp_connection, mcp_loop, mcp_process, mcp_tools
mcp_process.EXIT_GRACE_S, mcp_connection.CLOSE_S, mcp_loop._EXIT_S = 60, 90, 120  # servers may take their time to end
shared, own = (mcp_tools(command=json.loads(sys.argv[1]), tools=["pid"], per_episode=own) for own in (False, True))
toolboxes = [Toolbox(tools) for tools in (shared, own)]
print(*(toolbox.call(ToolCall("pid", {})).text for toolbox in toolboxes), flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_servers_end_with_their_client(tmp_path: Path) -> None:
    logs = {"killed": tmp_path / "killed", "ended": tmp_path / "ended"}
    seconds = {"killed": "600", "ended": "0"}
    with ExitStack() as stack:
        clients = {
            way: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CLIENT, json.dumps(bare(log)), seconds[way]],
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            for way, log in logs.items()
        }
        pids = {way: [int(word) for word in _line(client).split()] for way, client in clients.items()}
        assert list(map(len, pids.values())) == [2, 2]
        assert all(map(exists, pids["killed"]))
        clients["killed"].send_signal(signal.SIGKILL)
        assert [client.wait() for client in clients.values()] == [-signal.SIGKILL, 0]
    assert wait_until(lambda: not any(map(exists, pids["killed"] + pids["ended"])))
    for log in logs.values():  # of their own accord, the one that listed the tools as well
        assert wait_until(lambda log=log: log.read_text().count("end of input") == 3)  # type: ignore[misc]


def _line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline()


def test_a_forked_process_has_servers_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tools = bare_tools(log)
    with Toolbox(tools) as toolbox:
        mine = call(toolbox, "pid").text
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # no assertions here: pytest is not to go on in this process
            os.close(read)
            seen: list[str] = []
            try:
                seen.append(_outcome(toolbox))
                with Toolbox(tools) as own:
                    seen.append(call(own, "pid").text)
                close_mcp_servers()
            finally:
                os.write(write, json.dumps(seen).encode())
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as answers:
            refused, other = json.load(answers)
        os.waitpid(child, 0)
        assert "opened in another process" in refused
        assert other not in ("", mine)
        assert not exists(int(other))
        assert call(toolbox, "pid").text == mine


def _outcome(toolbox: Toolbox) -> str:
    try:
        return call(toolbox, "pid").text
    except InfrastructureError as error:
        return str(error)


def test_a_forked_process_does_not_keep_a_server_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(mcp_process, "EXIT_GRACE_S", 20.0)  # to see it, which it cannot while the child has the pipe
    monkeypatch.setattr(mcp_connection, "CLOSE_S", 25.0)
    tools: tuple[McpTool, ...] = bare_tools(log)
    with Toolbox(tools) as toolbox:
        call(toolbox, "pid")
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        close_mcp_servers()
        assert "end of input" in log.read_text()  # it saw the end although the child lives
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_nothing_of_mcp_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, agentrl.tools, agentrl.envs, agentrl.cli.main; print([m for m in sys.modules if m[:3] == 'mcp'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"
