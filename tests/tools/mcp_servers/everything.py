"""An MCP server with a tool for every kind of answer, on standard streams or, with the argument "http", on HTTP."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import mcp_types
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

server = MCPServer("everything", log_level="ERROR")


class Point(BaseModel):
    x: int
    y: Annotated[int, Field(ge=0)] = 0


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def plot(points: list[Point], color: Literal["red", "blue"] = "red") -> str:
    """Draws points."""
    return f"{len(points)} {color}"


@server.tool()
def fail(reason: str) -> str:
    """Fails."""
    raise ToolError(reason)


@server.tool()
def die(status: int) -> str:
    """Ends the server in the middle of the call."""
    print("about to die", file=sys.stderr, flush=True)
    os._exit(status)


@server.tool()
async def sleep(seconds: float, mark: str) -> str:
    """Waits, and leaves a file that tells how it ended, if it has; empty before."""
    try:
        Path(mark).touch()
        await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class():
        Path(mark).write_text("cancelled")
        raise
    Path(mark).write_text("slept")
    return "slept"


@server.tool()
def picture() -> list[Any]:
    """Text, an image and resources."""
    link = mcp_types.ResourceLink(uri="file:///r.csv", name="r.csv", mime_type="text/csv", description="A table")
    text = mcp_types.TextResourceContents(uri="file:///a.txt", text="inside")
    blob = mcp_types.BlobResourceContents(uri="file:///b.bin", blob="AAEC")
    return [
        "A cat.",
        mcp_types.ImageContent(data="AAECAw==", mime_type="image/png"),
        link,
        mcp_types.EmbeddedResource(resource=text),
        mcp_types.EmbeddedResource(resource=blob),
    ]


@server.tool()
def session(context: Context) -> str:
    """The connection that the call came from."""
    request = context.request_context.request
    return str(request.headers.get("mcp-session-id") if request else None)


def serve_http() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp", file=sys.stderr, flush=True)
    config = uvicorn.Config(server.streamable_http_app(), log_level="critical")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve_http() if sys.argv[1:] == ["http"] else server.run()
