"""The servers that episodes use: one that they share and that is started again, or one for each of them."""

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from agentrl.errors import InfrastructureError
from agentrl.forking import fresh_after_fork
from agentrl.tools import mcp_loop
from agentrl.tools.mcp_spec import ServerSpec

if TYPE_CHECKING:  # at run time only where it is needed: the package `mcp` takes long to import
    from agentrl.tools.mcp_connection import Connection

MAX_STARTS = 3
"""How often a shared server that died is started, in a row, before the episode that needs it is given up."""
_FIRST_PAUSE_S = 0.5
_CLOSE_S = 30.0


class EpisodeServer(ABC):
    """What the tools of one server in one episode have in common: the connection that serves them."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    async def connection(self) -> "Connection":
        """The connection of this episode, always the same one; made when it is first asked for.

        Raises:
            InfrastructureError: It cannot be made, or belongs to another process.
        """
        if self._pid != os.getpid():
            raise InfrastructureError("An MCP tool was opened in another process; open it again in this one.")
        return await self._connection()

    @abstractmethod
    async def _connection(self) -> "Connection": ...


class SharedServer:
    """A server that all episodes of this process use, possibly at the same time.

    Use `shared_server` to get one. Nothing but `current` is to be used outside the loop.
    """

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()

    @property
    def current(self) -> "Connection | None":
        """The connection, unless there is none or it is known to be dead."""
        connection = self._connection
        return connection if connection is not None and connection.alive else None

    async def connection(self, max_starts: int = MAX_STARTS) -> "Connection":
        """The connection, made anew if the last one died.

        Raises:
            ConfigError: The program cannot be started, or a key is missing.
            InfrastructureError: `max_starts` attempts failed.
        """
        from agentrl.tools.mcp_connection import Connection

        async with self._lock:
            for attempt in range(1, max_starts + 1):
                if self.current is not None:
                    break
                try:
                    self._connection = await Connection.open(self.spec)
                except InfrastructureError:
                    if attempt == max_starts:
                        raise
                    await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
            assert self._connection is not None
            return self._connection


class SharedEpisode(EpisodeServer):
    """An episode's use of a shared server: tied to one connection, so that it never goes on with another server."""

    def __init__(self, server: SharedServer) -> None:
        super().__init__()
        self._server = server
        self._bound = server.current

    async def _connection(self) -> "Connection":
        if self._bound is None:
            self._bound = await self._server.connection()
        return self._bound


class OwnEpisode(EpisodeServer):
    """A server of its own for one episode, started by the first call and ended when all its tools are closed.

    Args:
        spec: Of the server.
        names: All tools that use it.
    """

    def __init__(self, spec: ServerSpec, names: frozenset[str]) -> None:
        super().__init__()
        self._spec = spec
        self._names = names
        self.opened: set[str] = set()
        self._closed: set[str] = set()
        self._lock = asyncio.Lock()
        self._bound: Connection | None = None

    @property
    def over(self) -> bool:
        """Whether no tool can join any more."""
        return bool(self._closed)

    async def _connection(self) -> "Connection":
        from agentrl.tools.mcp_connection import Connection

        if self.opened != self._names:
            missing = ", ".join(sorted(self._names - self.opened))
            raise InfrastructureError(
                f"The tools of the MCP server `{self._spec.label}` share its state, so that an environment needs all "
                f"of them; it lacks {missing}. Choose with tools=[...] where the server is named."
            )
        async with self._lock:
            if self._bound is None:
                self._bound = await Connection.open(self._spec)
            return self._bound

    def leave(self, name: str) -> None:
        """Ends the server when the last of its tools is closed."""
        self._closed.add(name)
        if self._closed == self.opened and self._bound is not None and self._pid == os.getpid():
            mcp_loop.run(self._bound.close(), _CLOSE_S)


class _Joining(threading.local):
    """The servers of episodes that a thread is opening."""

    def __init__(self) -> None:
        self.begun: dict[tuple[ServerSpec, frozenset[str]], OwnEpisode] = {}


class _Servers:
    """Those of this process."""

    def __init__(self) -> None:
        self._begin()
        fresh_after_fork(self, _Servers._forget)

    def _begin(self) -> None:
        self._shared: dict[ServerSpec, SharedServer] = {}
        self._lock = threading.Lock()
        self.joining = _Joining()

    def _forget(self) -> None:
        mcp_loop.leave_to_parent(self._shared)
        self._begin()

    def shared(self, spec: ServerSpec) -> SharedServer:
        with self._lock:
            return self._shared.setdefault(spec, SharedServer(spec))


_servers = _Servers()


def shared_server(spec: ServerSpec) -> SharedServer:
    """The one of this spec in this process."""
    return _servers.shared(spec)


def join_episode(spec: ServerSpec, names: frozenset[str], name: str) -> OwnEpisode:
    """The server of the episode that is being opened.

    A toolbox opens its tools one after the other in one thread, so that the tools of a server find each other there:
    each joins the server that the thread has begun, unless it already has a tool of this name.
    """
    begun = _servers.joining.begun
    episode = begun.get((spec, names))
    if episode is None or episode.over or name in episode.opened:
        episode = begun[spec, names] = OwnEpisode(spec, names)
    episode.opened.add(name)
    if episode.opened == names:
        del begun[spec, names]
    return episode


def close_mcp_servers() -> None:
    """Ends every MCP connection of this process, and the servers that it started.

    This happens by itself when the process ends. A shared server is started again when it is next needed.
    """
    mcp_loop.run(_close_connections(), _CLOSE_S)


async def _close_connections() -> None:
    from agentrl.tools.mcp_connection import close_connections

    await close_connections()


mcp_loop.at_exit(_close_connections)
