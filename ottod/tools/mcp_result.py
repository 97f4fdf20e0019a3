"""An MCP tool's result as text for a model."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import msgspec

from ottod.tools.base import ToolOutput
from ottod.tools.keep_whole import Shown

if TYPE_CHECKING:
    import mcp_types

MAX_BLOCKS = 200
NOTHING = "(no output)"


def text_of(result: mcp_types.CallToolResult) -> str:
    """The text of all blocks; of what is no text, what it is. Structured content where there is no other.

    All of it is a stranger's.
    """
    parts = [_block(block) for block in result.content[:MAX_BLOCKS]]
    if len(result.content) > MAX_BLOCKS:
        parts.append(f"[{len(result.content) - MAX_BLOCKS} more pieces, not shown]")
    text = "\n".join(part for part in parts if part)
    if not text and result.structured_content is not None:
        text = _json(result.structured_content)
    return text.encode("utf-8", "replace").decode() or NOTHING


def from_server(shown: Shown, *, server: str, is_error: bool) -> ToolOutput:
    """A server's words, marked as such; our own come first: that it failed, and where the rest of it is."""
    own = [f"MCP server {server}: the call failed"] if is_error else []
    return ToolOutput(
        text="\n".join([*own, *(f"[{note}]" for note in shown.notes)]),
        untrusted=shown.text,
        untrusted_source=f"the MCP server {server}",
        is_error=is_error,
        truncated=shown.is_cut,
    )


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
