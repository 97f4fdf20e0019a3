"""fs_edit: exact replacement of text in a file, keeping its encoding and line endings."""

from __future__ import annotations

import difflib
from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.text import TextFile, decode_text, lines_of

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_SHOWN_MATCHES = 5
MAX_COMPARED_LINES = 5000
"""How much of a file is searched for lines like the one that was not found: comparing is slow."""


class EditArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to replace."""

    path: Annotated[str, Meta(description="The file, relative to the working directory.")]
    old: Annotated[str, Meta(min_length=1, description="The text to replace, exactly as it is in the file.")]
    new: Annotated[str, Meta(description="What to put in its place.")]
    replace_all: Annotated[bool, Meta(description="Replace every occurrence instead of the only one.")] = False


async def run(arguments: EditArguments, context: ToolContext) -> ToolOutput:
    """Says how much was replaced, and where the first replacement is."""
    if arguments.old == arguments.new:
        raise ToolError("old and new are the same; nothing would change", code="no_change")
    done: list[tuple[int, int]] = []

    def transform(data: bytes) -> bytes:
        file = decode_text(data, path=arguments.path)
        text, count, line = replace(file, arguments)
        done.append((count, line))
        return file.encode(text, path=arguments.path)

    await context.in_thread(context.files.change, arguments.path, transform, max_bytes=MAX_FILE_BYTES)
    count, line = done[-1]
    return ToolOutput(
        text=f"replaced {plural(count, 'occurrence')} in {arguments.path}, the first at line {line}",
        data={"path": context.files.relative(arguments.path), "replaced": count, "line": line},
    )


def replace(file: TextFile, arguments: EditArguments) -> tuple[str, int, int]:
    """The new text, the number of replacements and the line of the first. Raises ToolError for no or many matches."""
    old, new = arguments.old, arguments.new
    count = file.text.count(old)
    if "\r\n" in file.text and "\r" not in old + new:
        # Models write \n; in a file of \r\n lines that is what they mean.
        if not count:
            old = old.replace("\n", "\r\n")
            count = file.text.count(old)
        if file.newline == "\r\n":
            new = new.replace("\n", "\r\n")
    if not count:
        raise ToolError(
            f"the text to replace is not in {arguments.path}{_nearest(file.text, arguments.old)}", code="not_found"
        )
    if count > 1 and not arguments.replace_all:
        raise ToolError(
            f"the text occurs {count} times in {arguments.path} ({_places(file.text, old)}); "
            "add lines around it to make it unique, or set replace_all",
            code="ambiguous",
        )
    return file.text.replace(old, new), count, file.text.count("\n", 0, file.text.index(old)) + 1


def _places(text: str, old: str) -> str:
    lines: list[int] = []
    at = text.find(old)
    while at >= 0 and len(lines) < MAX_SHOWN_MATCHES:
        lines.append(text.count("\n", 0, at) + 1)
        at = text.find(old, at + len(old))
    more = ", …" if at >= 0 else ""
    return f"lines {', '.join(str(line) for line in lines)}{more}"


def _nearest(text: str, old: str) -> str:
    """The line of the file that is most like the first telling line of `old`, with what follows it."""
    wanted = next((line.strip() for line in lines_of(old) if line.strip()), "")
    lines = lines_of(text)
    if not wanted or not lines:
        return "; read the file again"
    stripped = [line.strip() for line in lines[:MAX_COMPARED_LINES]]
    best = difflib.get_close_matches(wanted[:500], [line[:500] for line in stripped], n=1, cutoff=0.5)
    if not best:
        return "; nothing in it is similar, read the file again"
    at = next(index for index, line in enumerate(stripped) if line[:500] == best[0])
    span = max(1, min(len(lines_of(old)), 8))
    shown = "\n".join(f"{number + 1:>6}\t{lines[number][:500]}" for number in range(at, min(at + span, len(lines))))
    return f"; the nearest lines are\n{shown}\nWhite space must match exactly"


FS_EDIT = Tool(
    name="fs_edit",
    description=(
        "Replace text in a file of the working directory. `old` must match exactly, white space included, and occur "
        "once, unless replace_all is set. Line numbers as fs_read shows them are not part of the file."
    ),
    arguments=EditArguments,
    permissions=frozenset({"read", "write"}),
    idempotent=False,
    run=run,
    touches=lambda arguments: Facts(reads=(arguments.path,), writes=(arguments.path,)),
    timeout_s=30.0,
)
