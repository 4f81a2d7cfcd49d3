"""One session with an MCP server: starting, calling, and saying what went wrong.

Imported only where MCP is used: the package `mcp` takes long to import.
"""

import asyncio
import functools
import logging
import os
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from typing import Any

import httpx2
import mcp_types
from mcp.client.client import Client
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from agentrl import __version__
from agentrl.errors import ConfigError, InfrastructureError, ToolError
from agentrl.forking import fresh_after_fork
from agentrl.tools.mcp_loop import leave_to_parent
from agentrl.tools.mcp_process import ServerProcess
from agentrl.tools.mcp_spec import ServerSpec

PROBE_S = 5.0
"""How long a server may take to show that it is alive after a call has timed out."""
CLOSE_S = 8.0
_CONNECT_S = 10.0
_MAX_PAGES = 100
_MAX_SHOWN = 500

_ANSWERS = {mcp_types.INVALID_PARAMS, mcp_types.INTERNAL_ERROR, mcp_types.URL_ELICITATION_REQUIRED}
_RESERVED = range(-32768, -31999)
"""The error codes of JSON-RPC and of MCP itself."""

logging.getLogger("mcp.client").addHandler(logging.NullHandler())  # failures are raised here, not printed as well

_refusals: ContextVar[list[int] | None] = ContextVar("refusals", default=None)
"""HTTP statuses with which the server, or one before it, refused to answer what is being asked."""


class Connection:
    """A session. Everything runs in the loop of `mcp_loop`; `open` makes one.

    Attributes:
        tools: What the server offers.
    """

    tools: list[mcp_types.Tool]
    _client: Client
    _session: ClientSession

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._process: ServerProcess | None = None
        self._stop = asyncio.Event()
        self._reason: str | None = None
        self._cause: BaseException | None = None
        self._refused: list[int] = []
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve())

    @classmethod
    async def open(cls, spec: ServerSpec) -> "Connection":
        """Starts or reaches the server and lists its tools.

        Raises:
            ConfigError: The program cannot be started, or a key is missing.
            InfrastructureError: The server ended, or did not answer as one within `start_s`.
        """
        async with _here.starting():
            connection = cls(spec)
            try:
                await asyncio.shield(connection._started)
            except BaseException:
                await connection.close()
                raise
            return connection

    @property
    def alive(self) -> bool:
        """Whether nothing is known to be wrong with it."""
        return self._reason is None

    async def call(self, name: str, arguments: Mapping[str, Any], limit_s: float) -> mcp_types.CallToolResult:
        """The server's answer to one call, which is sent once and never again.

        Raises:
            ToolError: The server refused the call, or did not answer within `limit_s` seconds; it was then told to
                stop, and has shown that it is alive.
            InfrastructureError: There is no server any more, or it does not answer at all. So it is for good.
        """
        if not self.alive:
            raise await self._failure()
        refusals: list[int] = []
        token = _refusals.set(refusals)
        try:
            async with asyncio.timeout(limit_s):
                # Cancelling tells the server, as the protocol says: by a notification, or by closing the response.
                answer = await self._session.call_tool(name, dict(arguments), allow_input_required=True)
        except TimeoutError:
            if await self._answers():
                raise ToolError(f"Tool {name!r} gave no result within {limit_s:g} s; the call was cancelled.") from None
            self._give_up("does not answer")
        except MCPError as error:
            if self.alive and not refusals and error.code != mcp_types.CONNECTION_CLOSED:
                raise self._told(error) from error
            self._give_up(f"refuses with HTTP status {refusals[-1]}" if refusals else f"failed: {error.message}")
        except (RuntimeError, ValueError) as error:  # not what the protocol or the tool's own schema promises
            raise InfrastructureError(self._message(f"gave a wrong answer: {str(error)[:_MAX_SHOWN]}")) from error
        else:
            if isinstance(answer, mcp_types.CallToolResult):
                return answer
            raise ToolError(f"Tool {name!r} asks a person for input, and there is none.")
        finally:
            _refusals.reset(token)
        raise await self._failure()

    async def close(self) -> None:
        """Ends the session and the server's process; safe to call twice."""
        self._give_up("was closed")
        await asyncio.wait({self._task}, timeout=CLOSE_S)
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_S)

    async def _serve(self) -> None:
        """Owns the session from beginning to end: it must be entered and left in one task."""
        _here.open.add(self)
        _refusals.set(self._refused)
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self.spec.start_s):
                    await self._start(stack)
                self._started.set_result(None)
                await self._stop.wait()
        except TimeoutError:
            self._give_up(f"did not answer within {self.spec.start_s:g} s of its start")
        except BaseException as error:  # cancellation too: nobody awaits this task for its result
            self._cause = _first(error)
            refused = not self._started.done() and self._refused
            self._give_up(f"refuses with HTTP status {self._refused[-1]}" if refused else "failed")
        finally:
            _here.open.discard(self)
            if not self._started.done():
                told = self._cause if isinstance(self._cause, ConfigError) else None
                self._started.set_exception(told or InfrastructureError(self._message(self._reason or "failed")))

    async def _start(self, stack: AsyncExitStack) -> None:
        if self.spec.url is None:
            self._process = ServerProcess(self.spec)
            transport: Any = self._process.streams(self._give_up)
        else:
            patience = httpx2.Timeout(_CONNECT_S, read=None)  # calls have limits of their own
            hooks = {"response": [_note_refusal]}
            http_client = httpx2.AsyncClient(
                headers=self.spec.headers(), timeout=patience, event_hooks=hooks, verify=_certificates()
            )
            transport = streamable_http_client(self.spec.url, http_client=await stack.enter_async_context(http_client))
        self._client = Client(
            transport,
            # Sessions exist only in the protocol with a handshake; the one that has none is asked for where it will do.
            mode="legacy" if self.spec.per_episode else "auto",
            cache=None,
            client_info=mcp_types.Implementation(name="agentrl", version=__version__),
        )
        await stack.enter_async_context(self._client)
        self._session = self._client.session
        self.tools = await self._listing()

    async def _listing(self) -> list[mcp_types.Tool]:
        tools: list[mcp_types.Tool] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return tools
        raise InfrastructureError(self._message(f"lists its tools on more than {_MAX_PAGES} pages"))

    async def _answers(self) -> bool:
        """Whether the server reacts to anything."""
        session = self._session
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_S):
                try:
                    if session.initialize_result is None:
                        await session.send_discover(self._client.protocol_version)
                    else:
                        await session.send_ping()
                except MCPError as error:
                    return self.alive and error.code != mcp_types.CONNECTION_CLOSED
                return self.alive
        return False

    def _told(self, error: MCPError) -> ToolError | InfrastructureError:
        """What a server that lives says of a call: that it was wrong or failed, or that it cannot serve it."""
        if error.code in _ANSWERS or error.code not in _RESERVED:
            return ToolError(error.message)
        return InfrastructureError(self._message(f"could not serve a call: {error.message} (code {error.code})"))

    def _give_up(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            self._stop.set()

    async def _failure(self) -> InfrastructureError:
        """The error to raise now that there is no connection; how the process ended is known when it has ended."""
        await asyncio.wait({self._task}, timeout=CLOSE_S)
        return InfrastructureError(self._message(self._reason or "failed"))

    def _message(self, what: str) -> str:
        parts = [what]
        if self._cause is not None and str(self._cause) != "Connection closed":  # which says no more
            parts.append(f"{type(self._cause).__name__} {self._cause}".strip()[:_MAX_SHOWN])
        if self._process is not None and self._process.how_it_ended:
            parts.append(self._process.how_it_ended)
        last_words = "" if self._process is None else self._process.last_words
        return f"The MCP server `{self.spec.label}` {': '.join(parts)}.{last_words}"


class _Connections:
    """Those of this process."""

    def __init__(self) -> None:
        self._begin()
        fresh_after_fork(self, _Connections._forget)

    def _begin(self) -> None:
        self.open: set[Connection] = set()
        self._start_slots: asyncio.Semaphore | None = None

    def starting(self) -> asyncio.Semaphore:
        """As many servers start at a time as there are cores: more would only keep each other from starting in time."""
        if self._start_slots is None:
            self._start_slots = asyncio.Semaphore(os.cpu_count() or 1)
        return self._start_slots

    def _forget(self) -> None:
        leave_to_parent(self.open)
        self._begin()


_here = _Connections()


async def close_connections() -> None:
    """Closes every connection of this process."""
    await asyncio.gather(*(connection.close() for connection in tuple(_here.open)))


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes 0.1 s, in which no other connection gets anything done."""
    return httpx2.create_ssl_context()


async def _note_refusal(response: httpx2.Response) -> None:
    refusals, status = _refusals.get(), response.status_code
    answered = response.headers.get("content-type", "").startswith("application/json")
    if refusals is not None and (status in (401, 403, 404, 429) or (status >= 500 and not answered)):
        refusals.append(status)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
