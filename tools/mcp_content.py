"""What a model reads of the answer of an MCP server."""

import base64
import binascii
from typing import TYPE_CHECKING, Any

from agentrl.errors import ToolError
from agentrl.tools.function import to_text

if TYPE_CHECKING:
    from mcp_types import CallToolResult


def result_text(result: "CallToolResult") -> str:
    """The text of a result.

    Text comes as it is and what is not text as a line that says what it was; structured content is shown, as JSON,
    only where there is no text, which by the protocol holds the same.

    Raises:
        ToolError: The result is an error; with its text.
    """
    parts = [_part(block) for block in result.content]
    if result.structured_content is not None and not any(block.type == "text" for block in result.content):
        parts.append(to_text(result.structured_content))
    text = "\n".join(parts)
    if result.is_error:
        raise ToolError(text)
    return text


def _part(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            return f"[{block.type} {block.mime_type}, {_num_bytes(block.data):,} bytes, not shown]"
        case "resource_link":
            about = ": ".join(part for part in (block.title or block.name, block.description) if part)
            return f"[resource {block.uri}{_kind(block)}: {about}]"
        case "resource":
            resource = block.resource
            text = getattr(resource, "text", None)
            if text is not None:
                return f"[resource {resource.uri}{_kind(resource)}]\n{text}"
            return f"[resource {resource.uri}{_kind(resource)}, {_num_bytes(resource.blob):,} bytes, not shown]"
    return f"[{block.type}, not shown]"


def _kind(resource: Any) -> str:
    return f", {resource.mime_type}" if resource.mime_type else ""


def _num_bytes(data: str) -> int:
    try:
        return len(base64.b64decode(data))
    except (binascii.Error, ValueError):
        return len(data)
