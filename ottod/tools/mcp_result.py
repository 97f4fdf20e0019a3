"""An MCP tool's result as text for a model."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import msgspec

from ottod.tools.base import ToolOutput

if TYPE_CHECKING:
    import mcp_types

MAX_BLOCKS = 200
NOTHING = "(no output)"


def tool_output(result: mcp_types.CallToolResult, *, server: str, max_bytes: int) -> ToolOutput:
    """The text of all blocks; of what is no text, what it is. Structured content where there is no other.

    All of it is a stranger's.
    """
    parts = [_block(block) for block in result.content[:MAX_BLOCKS]]
    if len(result.content) > MAX_BLOCKS:
        parts.append(f"[{len(result.content) - MAX_BLOCKS} more pieces, not shown]")
    text = "\n".join(part for part in parts if part)
    if not text and result.structured_content is not None:
        text = _json(result.structured_content)
    text, is_cut = cut_end(text.encode("utf-8", "replace").decode(), max_bytes)
    return from_server(text or NOTHING, server=server, is_error=bool(result.is_error), truncated=is_cut)


def from_server(text: str, *, server: str, is_error: bool, truncated: bool = False) -> ToolOutput:
    """A server's words, marked as such; of a failure our own word comes first."""
    return ToolOutput(
        text=f"MCP server {server}: the call failed" if is_error else "",
        untrusted=text,
        untrusted_source=f"the MCP server {server}",
        is_error=is_error,
        truncated=truncated,
    )


def cut_end(text: str, max_bytes: int) -> tuple[str, bool]:
    """The text, cut at `max_bytes` of UTF-8 with a mark that says so, and whether it was."""
    data = text.encode()
    if len(data) <= max_bytes:
        return text, False
    return f"{data[:max_bytes].decode('utf-8', 'ignore')}\n[… {len(data) - max_bytes} bytes not shown …]", True


def _block(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            return f"[{block.type} {block.mime_type}, {_size(block.data)} bytes, not shown]"
        case "resource_link":
            about = f": {block.description}" if block.description else ""
            return f"[resource {block.uri} ({block.name}){about}]"
        case "resource":
            inner = block.resource
            text = getattr(inner, "text", None)
            if text is not None:
                return f"[resource {inner.uri}]\n{text}"
            return f"[resource {inner.uri} {inner.mime_type or ''}, {_size(inner.blob)} bytes, not shown]"
        case _:
            return f"[a piece of type {block.type}, not shown]"


def _size(data: str) -> int:
    try:
        return len(base64.b64decode(data))
    except (binascii.Error, ValueError):
        return len(data)


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        return NOTHING
