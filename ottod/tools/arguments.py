"""A model's arguments, decoded, or refused in words that the model can act upon."""

from __future__ import annotations

import difflib
from typing import Any

import msgspec

from ottod.errors import UNDECODABLE, ToolError
from ottod.tools.base import Args, Tool

MAX_ARGUMENT_BYTES = 4 * 1024 * 1024
UNKNOWN_FIELD = "unknown field `"


def decode_arguments(tool: Tool[Args], json_text: str) -> Args:
    """The arguments of a call. Empty text counts as `{}`; "5" is accepted for 5, as models write it.

    Raises: ToolError (`bad_arguments`) that names the wrong field and the fields there are.
    """
    try:
        data = (json_text.strip() or "{}").encode()
    except UnicodeEncodeError as error:
        raise ToolError(f"{tool.name}: the arguments are not valid text", code="bad_arguments") from error
    if len(data) > MAX_ARGUMENT_BYTES:
        raise ToolError(f"{tool.name}: the arguments exceed {MAX_ARGUMENT_BYTES} bytes", code="bad_arguments")
    try:
        if tool.parameters is not None:
            values = msgspec.json.decode(data, type=dict[str, Any])
            return msgspec.convert({"values": values}, tool.arguments)
        return msgspec.json.decode(data, type=tool.arguments, strict=False)
    except msgspec.ValidationError as error:
        raise ToolError(
            f"{tool.name}: {_explain(tool, str(error))}. Fields: {fields(tool)}", code="bad_arguments"
        ) from error
    except UNDECODABLE as error:
        raise ToolError(
            f"{tool.name}: the arguments are not valid JSON ({error}); send one JSON object. Fields: {fields(tool)}",
            code="bad_arguments",
        ) from error


def fields(tool: Tool[Any]) -> str:
    """The fields of a tool on one line, optional ones with a question mark."""
    if tool.parameters is not None:
        required = tool.parameters.get("required", ())
        return ", ".join(name if name in required else f"{name}?" for name in tool.parameters.get("properties", {}))
    return ", ".join(
        field.encode_name if field.required else f"{field.encode_name}?"
        for field in msgspec.structs.fields(tool.arguments)
    )


def _explain(tool: Tool[Any], message: str) -> str:
    if UNKNOWN_FIELD not in message:
        return message
    unknown = message.split(UNKNOWN_FIELD, 1)[1].split("`", 1)[0]
    names = [field.encode_name for field in msgspec.structs.fields(tool.arguments)]
    nearest = difflib.get_close_matches(unknown, names, n=1)
    return f"{message}; did you mean `{nearest[0]}`?" if nearest else message
