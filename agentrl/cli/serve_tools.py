"""`agentrl serve-tools`: tools of the catalog, or of a module, for any MCP client."""

import asyncio
import importlib.util
import socket
from collections.abc import Sequence
from typing import Any

import typer
from pydantic import Field

from agentrl.config import Config, load_config
from agentrl.errors import ConfigError, MissingExtraError
from agentrl.registry import nearest
from agentrl.tools.catalog import make_tools
from agentrl.tools.core import Tool


class _Options(Config):
    tools: dict[str, dict[str, Any]] = Field(default_factory=dict)


def serve_tools(names: Sequence[str], tool_arguments: Sequence[str], http: str | None) -> None:
    """Serves until the client hangs up, or until the process is told to end.

    Args:
        names: Of the catalog, or "module:name".
        tool_arguments: "NAME.KEY=VALUE", options of the tools.
        http: "HOST:PORT"; standard input and output if None.

    Raises:
        ConfigError: A tool cannot be made, or the address cannot be used.
        MissingExtraError: The package `mcp` is not installed.
    """
    if importlib.util.find_spec("mcp") is None:
        raise MissingExtraError("mcp", "Serving tools")
    tools = _made(names, tool_arguments)
    listening = None if http is None else _bound(http)
    from agentrl.tools.mcp_serve import ToolServer  # not at the top: the package `mcp` takes long to import

    server = ToolServer(tools)
    if listening is None:
        asyncio.run(server.on_standard_streams())
        return
    host, port = listening.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/mcp"
    typer.echo(f"serving {', '.join(tool.name for tool in tools)} at {url}", err=True)
    asyncio.run(server.on_http(listening))


def _made(names: Sequence[str], tool_arguments: Sequence[str]) -> list[Tool]:
    for argument in tool_arguments:
        if "=" not in argument or "." not in argument.partition("=")[0]:
            raise ConfigError(f"--tool-arg looks like NAME.KEY=VALUE, got {argument!r}.")
    options = load_config(_Options, overrides=[f"tools.{argument}" for argument in tool_arguments]).tools
    for name in options:
        if name not in names:
            raise ConfigError(f"--tool-arg names the tool {name!r}, which is not served. {nearest(name, list(names))}")
    return [tool for name in names for tool in make_tools(name, options.get(name))]


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--http looks like HOST:PORT, such as 127.0.0.1:8000, got {address!r}.")
    host = host.removeprefix("[").removesuffix("]")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, int(port)))
        listening.listen()  # who reads the URL below may connect at once
    except OSError as error:
        listening.close()
        raise ConfigError(f"Nothing can be served at {address}: {error}.") from error
    return listening
