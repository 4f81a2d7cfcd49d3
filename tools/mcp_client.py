"""The tools of an MCP server as tools of agentrl."""

import importlib.util
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from agentrl.errors import ConfigError, ForkError, InfrastructureError, MissingExtraError
from agentrl.messages import JsonDict
from agentrl.registry import nearest
from agentrl.tools import mcp_loop
from agentrl.tools.core import Tool, check_definition
from agentrl.tools.mcp_arguments import ArgumentSchema
from agentrl.tools.mcp_servers import EpisodeServer, OwnEpisode, SharedEpisode, join_episode, shared_server
from agentrl.tools.mcp_spec import ServerSpec, make_spec

if TYPE_CHECKING:
    import mcp_types

_WAIT_S = 600.0
"""Beside its limit, a call may wait for a free core, for the start of a server and for its restarts."""


@dataclass(frozen=True, slots=True)
class _Set:
    """What the tools that one call of `mcp_tools` gives have in common; its fields are that function's arguments."""

    spec: ServerSpec
    names: frozenset[str]
    idempotent: bool
    deadline_s: float
    max_output_chars: int
    max_concurrency: int | None


@dataclass(frozen=True, slots=True)
class _Listed:
    """A tool as its server lists it; `name` is what the model calls it, `remote` what the server does."""

    remote: str
    name: str
    description: str
    parameters: JsonDict


class McpTool(Tool):
    """A tool of an MCP server; `mcp_tools` makes them.

    A call is sent to the server once and never again, whatever happens to it.

    Attributes:
        limit_s: Wall-clock limit of a call in seconds, after which it is cancelled at the server.
    """

    def __init__(self, listed: _Listed, of: _Set, server: EpisodeServer | None = None) -> None:
        self.name = listed.name
        self.description = listed.description
        self.parameters = listed.parameters
        self.idempotent = of.idempotent
        self.max_output_chars = of.max_output_chars
        self.max_concurrency = of.max_concurrency
        self.deadline_s = None  # a call keeps its own limit, and tells the server when it has passed
        self.limit_s = of.deadline_s
        self._listed = listed
        self._set = of
        self._server = server

    def check(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Checks the arguments against the whole schema."""
        self._schema.check(arguments)
        return arguments

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Runs one call at the server.

        Raises:
            ToolError: The server says that the call failed, or gave no result in time.
            InfrastructureError: The server ended, cannot be reached or does not answer.
        """
        if self._server is None:
            raise InfrastructureError(f"The MCP tool {self.name!r} was called before open().")
        return mcp_loop.run(self._call(self._server, arguments), self.limit_s + _WAIT_S)

    def open(self) -> Self:
        """The tool for one episode. A server that never ran, or that died, is started by the first call."""
        spec = self._set.spec
        if spec.per_episode:
            return type(self)(self._listed, self._set, join_episode(spec, self._set.names, self.name))
        return type(self)(self._listed, self._set, SharedEpisode(shared_server(spec)))

    def fork(self) -> Self:
        """The same tool of the same server, if episodes share it.

        Raises:
            ForkError: The server belongs to this episode alone; nothing copies its state.
        """
        if self._set.spec.per_episode:
            raise ForkError(f"Tool {self.name!r} has an MCP server of its own, whose state cannot be copied.")
        return type(self)(self._listed, self._set, self._server)

    def close(self) -> None:
        """Ends the episode's own server when the last of its tools is closed."""
        if isinstance(self._server, OwnEpisode):
            self._server.leave(self.name)

    async def _call(self, server: EpisodeServer, arguments: Mapping[str, Any]) -> str:
        from agentrl.tools.mcp_content import result_text

        try:
            connection = await server.connection()
        except ConfigError as error:  # it was right when the tools were listed
            raise InfrastructureError(str(error)) from error
        return result_text(await connection.call(self._listed.remote, arguments, self.limit_s))

    @property
    def kind(self) -> Hashable:
        """All tools of one server, whose calls `max_concurrency` counts together."""
        return (type(self).__module__, type(self).__qualname__, self._set.spec)

    @cached_property
    def _schema(self) -> ArgumentSchema:
        return ArgumentSchema(self.name, self.parameters)

    def __repr__(self) -> str:
        return f"McpTool({self.name!r}, {self._set.spec.label!r})"

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without its connection; the other process makes one of its own."""
        return type(self), (self._listed, self._set)


def mcp_tools(
    *,
    command: str | Sequence[str] | None = None,
    url: str | None = None,
    tools: Sequence[str] | Mapping[str, str] | None = None,
    env: Mapping[str, str | None] | None = None,
    cwd: str | None = None,
    api_key_env: str | None = None,
    per_episode: bool = False,
    idempotent: bool = False,
    deadline_s: float = 30.0,
    max_output_chars: int = Tool.max_output_chars,
    max_concurrency: int | None = None,
    start_s: float = 30.0,
) -> tuple[McpTool, ...]:
    """The tools of an MCP server: a program to start, or a URL.

    The server is started or asked once, now, for the list of its tools. What it says about them otherwise (that one
    only reads, or may be repeated) is its own word and has no effect.

    Args:
        command: Program and arguments of a server that talks over its standard streams.
        url: End point of a server that talks streamable HTTP, such as "http://127.0.0.1:8000/mcp".
        tools: Names of those to take, all by default; as {"its name": "name for the model"} to rename them.
        env: Environment variables for the program, which otherwise gets PATH, HOME and the like; null takes the
            value that this process has.
        cwd: Directory in which the program runs.
        api_key_env: Environment variable with the key that is sent to the URL as a bearer token.
        per_episode: Every episode has a server, or a session of the URL's server, of its own: for servers with state.
            An environment must have all the tools then, not some of them.
        idempotent: Running a call a second time changes nothing outside of the episode (see `Tool`).
        deadline_s: Wall-clock limit of one call in seconds; it is then cancelled at the server.
        max_output_chars: A longer result is cut to its head and tail.
        max_concurrency: Calls of all the server's tools together that may run at a time; None for any number.
        start_s: Longest time that the server may take to start and to list its tools.

    Raises:
        ConfigError: A setting cannot be used, the server lacks a tool, or one has a name or schema that cannot be used.
        InfrastructureError: The server ended, cannot be reached or does not answer.
        MissingExtraError: The package `mcp` is not installed.
    """
    spec = make_spec(
        command=command,
        url=url,
        env=env,
        cwd=cwd,
        api_key_env=api_key_env,
        start_s=start_s,
        per_episode=per_episode,
    )
    if not (deadline_s > 0 and math.isfinite(deadline_s)):
        raise ConfigError(f"deadline_s of MCP tools must be positive and finite, got {deadline_s!r}.")
    if importlib.util.find_spec("mcp") is None:
        raise MissingExtraError("mcp", "An MCP server")
    listed = _chosen(mcp_loop.run(_listing(spec), start_s + _WAIT_S), tools, spec)
    common = _Set(
        spec, frozenset(tool.name for tool in listed), idempotent, deadline_s, max_output_chars, max_concurrency
    )
    made = tuple(McpTool(tool, common) for tool in listed)
    for tool in made:
        _check(tool)
    return made


def _check(tool: McpTool) -> None:
    usable = re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:64]
    if usable != tool.name:
        raise ConfigError(
            f"Tool name {tool.name!r} is not usable: MCP takes it, but models are given names of at most 64 letters, "
            f"digits, '_' or '-'. Name the tools that you want, and rename it: tools={{{tool.name!r}: {usable!r}}}."
        )
    check_definition(tool)
    ArgumentSchema(tool.name, tool.parameters)


async def _listing(spec: ServerSpec) -> "list[mcp_types.Tool]":
    from agentrl.tools.mcp_connection import Connection

    if not spec.per_episode:
        return (await shared_server(spec).connection(max_starts=1)).tools
    connection = await Connection.open(spec)
    await connection.close()
    return connection.tools


def _chosen(
    offered: "Sequence[mcp_types.Tool]", tools: Sequence[str] | Mapping[str, str] | None, spec: ServerSpec
) -> list[_Listed]:
    by_name = {tool.name: tool for tool in offered}
    if not by_name:
        raise ConfigError(f"The MCP server `{spec.label}` has no tools.")
    if isinstance(tools, str):
        raise ConfigError(f"tools is a list of names, got {tools!r}; write [{tools!r}].")
    names = tools if isinstance(tools, Mapping) else {name: name for name in (by_name if tools is None else tools)}
    for name in names:
        if name not in by_name:
            raise ConfigError(f"The MCP server `{spec.label}` has no tool {name!r}. {nearest(name, list(by_name))}")
    return [_listed(by_name[remote], str(name)) for remote, name in names.items()]


def _listed(tool: "mcp_types.Tool", name: str) -> _Listed:
    title = tool.title or (tool.annotations.title if tool.annotations else None)
    return _Listed(tool.name, name, tool.description or title or tool.name, tool.input_schema)
