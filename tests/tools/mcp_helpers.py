"""Starting the MCP servers of the tests, and looking at what became of them."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agentrl.messages import ToolCall
from agentrl.tools import McpTool, Toolbox, ToolResult, mcp_connection, mcp_tools

SERVERS = Path(__file__).parent / "mcp_servers"
EVERYTHING = (sys.executable, str(SERVERS / "everything.py"))
BARE_TOOLS = ("echo", "remember", "hang", "die", "freeze", "pid", "wrong")
ROOT = Path(__file__).parents[2]


def bare(log: Path, *flags: str) -> tuple[str, ...]:
    """The command of the server without the package; it writes what it gets into the log."""
    return (sys.executable, "-S", "-E", str(SERVERS / "bare.py"), str(log), *flags)


def bare_tools(log: Path, *flags: str, tools: Any = BARE_TOOLS, **options: Any) -> tuple[McpTool, ...]:
    return mcp_tools(command=bare(log, *flags), tools=tools, **options)


def call(toolbox: Toolbox, name: str, **arguments: Any) -> ToolResult:
    return toolbox.call(ToolCall(name, arguments))


def exists(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(holds: Callable[[], bool], limit_s: float = 60.0) -> bool:
    ends_at = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.01)
    return True


def pass_deadline_when(holds: Callable[[], bool], limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a limit of so many seconds pass when a condition comes true, and not before: when the server has begun."""

    @asynccontextmanager
    async def passing() -> AsyncIterator[None]:
        async with asyncio.timeout(None) as scope:

            async def watch() -> None:
                while not holds():
                    await asyncio.sleep(0.01)
                scope.reschedule(asyncio.get_running_loop().time())

            watching = asyncio.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()

    class Asyncio:
        """Stands for the module."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
            return passing() if seconds == limit_s else asyncio.timeout(seconds)

    monkeypatch.setattr(mcp_connection, "asyncio", Asyncio())


def started(log: Path) -> list[int]:
    """Process ids of all servers that wrote this log."""
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("started")]


@contextmanager
def serving(*command: str, cwd: Path = ROOT) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server on HTTP that writes its URL as the last word of a line on standard error."""
    with subprocess.Popen(
        command, cwd=cwd, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "http://" in line:
                    break
            yield line.split()[-1], process
        finally:
            process.kill()
