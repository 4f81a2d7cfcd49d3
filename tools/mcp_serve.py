"""Tools of agentrl as an MCP server, on standard streams or on HTTP.

Imported only where MCP is used: the package `mcp` takes long to import.
"""

import asyncio
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import mcp_types
import uvicorn
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from agentrl import __version__
from agentrl.errors import AgentRLError, ConfigError, InfrastructureError
from agentrl.messages import ToolCall
from agentrl.tools.core import Tool, ToolResult, check_definition
from agentrl.tools.toolbox import Toolbox

T = TypeVar("T")

INFRASTRUCTURE_FAILURE = -32050
"""Error code of a call that failed through no fault of whoever called: in the range that JSON-RPC leaves to servers."""
_STATE = "agentrl"
_END_S = 10.0


class ToolServer:
    """Serves tools. Every session has its own opened instances, as an episode has.

    Args:
        tools: What is served; never called themselves, if they keep state.

    Raises:
        ConfigError: Two tools have one name, or one is not properly defined.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        for tool in tools:  # what is wrong is said now, not to the first client
            check_definition(tool)
        twice = [name for name, count in Counter(tool.name for tool in tools).items() if count > 1]
        if twice:
            raise ConfigError(f"Two tools are called {twice[0]!r}: give one of them another name.")
        self._tools = tuple(tools)
        self._ending: set[asyncio.Task[None]] = set()
        self.server: Server[Any] = Server(
            "agentrl",
            version=__version__,
            lifespan=self._lifespan,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )
        self.server.middleware.append(_with_handshake)

    async def on_standard_streams(self) -> None:
        """Serves one session, until standard input ends. What tools print goes to standard error."""
        printed = sys.stdout
        async with stdio_server() as (incoming, outgoing):
            try:
                async with self.server.lifespan(self.server) as state:
                    await serve_loop(self.server, incoming, outgoing, lifespan_state=state)
            finally:
                printed.flush()  # now, and not when descriptor 1 is the client's again

    async def on_http(self, listening: socket.socket) -> None:
        """Serves any number of sessions by streamable HTTP at the path /mcp, until the process is told to end.

        Args:
            listening: Bound to the address.
        """
        app = self.server.streamable_http_app(host=listening.getsockname()[0])
        await uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve(sockets=[listening])

    async def _list(
        self, context: ServerRequestContext[Any], params: mcp_types.PaginatedRequestParams | None
    ) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(
            tools=[
                mcp_types.Tool(name=tool.name, description=tool.description, input_schema=tool.parameters)
                for tool in self._tools
            ]
        )

    async def _call(
        self, context: ServerRequestContext[Any], params: mcp_types.CallToolRequestParams
    ) -> mcp_types.CallToolResult:
        connection: Connection = context.session._connection  # the only way from a handler to what lives as long
        if _STATE not in connection.state:
            connection.state[_STATE] = session = _Session(self._tools)
            connection.exit_stack.callback(self._end, session)
        call = ToolCall(params.name, params.arguments or {})
        try:
            result = await connection.state[_STATE].call(call)
        except AgentRLError as error:
            raise MCPError(INFRASTRUCTURE_FAILURE, str(error)) from error
        content: list[mcp_types.ContentBlock] = [mcp_types.TextContent(text=result.text)]
        return mcp_types.CallToolResult(content=content, is_error=not result.ok)

    def _end(self, session: "_Session") -> None:
        """Closes a session's tools when the call that is going on has ended, which the client does not wait for."""
        task = asyncio.create_task(session.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    @asynccontextmanager
    async def _lifespan(self, server: Server[Any]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            if self._ending:
                await asyncio.wait(self._ending, timeout=_END_S)


class _Session:
    """The tools of one session, which are called one after the other, each time in a thread.

    A call that the client gives up goes on to its end or deadline, and the next one waits for it: Python cannot stop
    it, and two calls at a time are not what tools are made for.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = tools
        self._toolbox: Toolbox | None = None
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[ToolResult]] = set()

    async def call(self, call: ToolCall) -> ToolResult:
        task = asyncio.create_task(self._call(call))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        async with self._lock:
            if self._toolbox is not None:
                with suppress(Exception):  # nobody is left to be told
                    await _in_thread(self._toolbox.close)

    async def _call(self, call: ToolCall) -> ToolResult:
        async with self._lock:
            if self._toolbox is None:
                self._toolbox = await _in_thread(lambda: Toolbox(self._tools))
            toolbox = self._toolbox
            return await _in_thread(lambda: toolbox.call(call))


async def _with_handshake(ctx: ServerRequestContext[Any], call_next: CallNext) -> HandlerResult:
    """Refuses the protocol without sessions, in which no request could find the tools that an earlier one used."""
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        versions = {"supported": list(HANDSHAKE_PROTOCOL_VERSIONS), "requested": ctx.protocol_version}
        raise MCPError(mcp_types.UNSUPPORTED_PROTOCOL_VERSION, "Sessions are needed: send initialize.", versions)
    return await call_next(ctx)


async def _in_thread(work: Callable[[], T]) -> T:
    """Runs work in a daemon thread of its own: a pool would be full when a few sessions have hung calls."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(value: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_result(value) if error is None else future.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = work()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # SystemExit of a tool must not end the server
            error = InfrastructureError(f"{type(raised).__name__}: {raised}")
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, value, error)

    threading.Thread(target=run, name="agentrl-mcp-session", daemon=True).start()
    return await future
