"""fs_read: a text file, or a part of it, with line numbers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.text import decode_text, lines_of

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_LINE_CHARS = 2000
DEFAULT_LIMIT = 2000


class ReadArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to read."""

    path: Annotated[str, Meta(description="The file, relative to the working directory.")]
    offset: Annotated[int, Meta(ge=1, description="The first line to show, counted from 1.")] = 1
    limit: Annotated[int, Meta(ge=1, le=100_000, description="How many lines to show.")] = DEFAULT_LIMIT


async def run(arguments: ReadArguments, context: ToolContext) -> ToolOutput:
    """Numbered lines; where they stop short of the end, a last line says how to go on."""
    return await context.in_thread(_run, arguments, context)


def _run(arguments: ReadArguments, context: ToolContext) -> ToolOutput:
    data = context.files.read(arguments.path, max_bytes=MAX_FILE_BYTES)
    # A part of a key is shown as little as the whole: neither by lines nor where a line is cut.
    lines = lines_of(context.redactor.keys_hidden(decode_text(data, path=arguments.path).text))
    if not lines:
        return ToolOutput(text=f"{arguments.path} is empty", data={"lines": 0})
    if arguments.offset > len(lines):
        raise ToolError(f"{arguments.path} has only {plural(len(lines), 'line')}", code="out_of_range")
    shown: list[str] = []
    room = context.max_output_bytes - 200
    for number in range(arguments.offset, min(arguments.offset + arguments.limit, len(lines) + 1)):
        line = lines[number - 1]
        if len(line) > MAX_LINE_CHARS:
            line = context.redactor.text(line)
        if len(line) > MAX_LINE_CHARS:
            line = f"{line[:MAX_LINE_CHARS]} [… {len(line) - MAX_LINE_CHARS} characters not shown]"
        numbered = f"{number:>6}\t{line}"
        room -= len(numbered.encode("utf-8", "replace")) + 1
        if room < 0 and shown:
            break
        shown.append(numbered)
    last = arguments.offset + len(shown) - 1
    is_cut = last < len(lines)
    if is_cut:
        shown.append(f"[lines {arguments.offset} to {last} of {len(lines)}; go on with offset={last + 1}]")
    return ToolOutput(text="\n".join(shown), truncated=is_cut, data={"lines": len(lines)})


FS_READ = Tool(
    name="fs_read",
    description=(
        "Read a text file of the working directory. Lines are numbered from 1; the number and a tab are not part of "
        "the file. Long files are shown in parts: go on with offset."
    ),
    arguments=ReadArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(reads=(arguments.path,)),
    timeout_s=30.0,
)
