"""fs_write: a whole file, new or replaced."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.text import lines_of


class WriteArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to write, and where."""

    path: Annotated[str, Meta(description="The file, relative to the working directory.")]
    content: Annotated[str, Meta(description="The whole new content.")]


async def run(arguments: WriteArguments, context: ToolContext) -> ToolOutput:
    """Says what was written and whether the file is new."""
    try:
        data = arguments.content.encode()
    except UnicodeEncodeError as error:
        raise ToolError("the content is not valid text", code="bad_encoding") from error
    is_new = await context.in_thread(context.files.write, arguments.path, data)
    lines = len(lines_of(arguments.content))
    size = f"{plural(lines, 'line')}, {plural(len(data), 'byte')}"
    return ToolOutput(
        text=f"{'created' if is_new else 'replaced'} {arguments.path} ({size})",
        data={"path": context.files.relative(arguments.path), "bytes": len(data), "new": is_new},
    )


FS_WRITE = Tool(
    name="fs_write",
    description=(
        "Create a file of the working directory, or replace the whole of one. Missing directories are made. "
        "To change a part of a file, use fs_edit."
    ),
    arguments=WriteArguments,
    permissions=frozenset({"write"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(writes=(arguments.path,)),
    timeout_s=30.0,
)
