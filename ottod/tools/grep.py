"""grep: lines that match, by ripgrep where it is installed, else by a searcher of our own."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.tools.base import Facts, ProgramResult, Tool, ToolContext, ToolOutput
from ottod.tools.ignore_rules import IgnoreRules
from ottod.tools.text import lines_of, printable
from ottod.tools.tree_walk import walk

DEFAULT_LIMIT = 200
MAX_LIMIT = 5000
MAX_COLUMNS = 400
COMMAND_NOT_FOUND = 127
MAX_FILES = 50_000
"""The most files that our own searcher looks at."""
CUT_MARKS = (" [... omitted end of long line]", " [… cut]")
"""What ends a line that was longer."""
SEARCHER = Path(__file__).with_name("search_program.py")

# rg has no limit on the whole of its output. `head` closes the pipe instead, and rg's status travels past it.
LIMITED_RG = 'mark=$1 limit=$2; shift 2; { rg "$@"; echo "$mark$?" >&2; } | head -n "$limit"'


class GrepArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to look for, and where."""

    pattern: Annotated[str, Meta(min_length=1, description="A regular expression, or plain text with `literal`.")]
    path: Annotated[str, Meta(description="A directory or file, relative to the working directory.")] = "."
    literal: Annotated[bool, Meta(description="Take the pattern as plain text.")] = False
    ignore_case: Annotated[bool, Meta(description="Match upper and lower case alike.")] = False
    glob: Annotated[str, Meta(description="Only files that match this glob, such as `*.py` or `src/**/*.ts`.")] = ""
    context: Annotated[int, Meta(ge=0, le=20, description="Lines to show before and after each match.")] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="The most lines of output.")] = DEFAULT_LIMIT


async def run(arguments: GrepArguments, context: ToolContext) -> ToolOutput:
    """`path:line:text` per match. Nothing found is a result, not an error."""
    if "\n" in arguments.pattern or "\0" in arguments.pattern:
        raise ToolError("the pattern must be one line; matches never span lines", code="bad_pattern")
    place = context.files.relative(arguments.path)
    await context.in_thread(context.files.stat, arguments.path)
    try:
        result, text, status = await _ripgrep(arguments, place, context)
    except ToolError as error:
        if error.code != "no_program":
            raise
        result = await _own_searcher(arguments, place, context)
        text, status = result.output, result.exit_status
    return _report(arguments, result, text, status, context)


async def _ripgrep(arguments: GrepArguments, place: str, context: ToolContext) -> tuple[ProgramResult, str, int]:
    # Unguessable, because a file may hold anything, this line included.
    mark = f"rg-{secrets.token_hex(8)}:"
    options = [
        *("--no-config", "--no-heading", "--with-filename", "--line-number", "--color=never", "--sort=path"),
        *("--hidden", "--no-require-git", "--no-ignore-parent", "--no-ignore-global"),
        *(f"--max-columns={MAX_COLUMNS}", "--max-columns-preview", f"--context={arguments.context}"),
        *(["--fixed-strings"] if arguments.literal else []),
        *(["--ignore-case"] if arguments.ignore_case else []),
        *([f"--glob={arguments.glob}"] if arguments.glob else []),
        "--glob=!.git",
        *("--regexp", arguments.pattern, "--", place),
    ]
    result = await context.programs.run(
        ["/bin/sh", "-c", LIMITED_RG, "sh", mark, str(arguments.limit + 1), *options],
        timeout_s=context.timeout_s,
        max_output_bytes=context.max_output_bytes,
    )
    text, status = _split_status(result, mark)
    if result.ended == "exited" and status == COMMAND_NOT_FOUND:
        raise ToolError("rg is not installed", code="no_program")
    return result, text, status


async def _own_searcher(arguments: GrepArguments, place: str, context: ToolContext) -> ProgramResult:
    names = await context.in_thread(_files_to_search, arguments, place, context)
    options = {
        "pattern": arguments.pattern,
        "literal": arguments.literal,
        "ignore_case": arguments.ignore_case,
        "context": arguments.context,
        "limit": arguments.limit + 1,
    }
    source = await asyncio.to_thread(SEARCHER.read_text)
    return await context.programs.run(
        [sys.executable, "-I", "-S", "-c", source, json.dumps(options)],
        timeout_s=context.timeout_s,
        max_output_bytes=context.max_output_bytes,
        stdin=b"".join(os.fsencode(name) + b"\0" for name in names),
    )


def _files_to_search(arguments: GrepArguments, place: str, context: ToolContext) -> list[str]:
    if context.files.stat(place).kind != "dir":
        return [place]
    wanted = IgnoreRules([arguments.glob]) if arguments.glob else None
    if wanted is not None and wanted.is_empty:
        raise ToolError(f"not a pattern of file names: {arguments.glob}", code="bad_pattern")
    found = (each.path for each in walk(context.files, place) if each.entry.kind == "file")
    return list(itertools.islice((path for path in found if wanted is None or wanted.covers(path)), MAX_FILES))


def _report(
    arguments: GrepArguments, result: ProgramResult, text: str, status: int, context: ToolContext
) -> ToolOutput:
    lines = [_without_half(line.removeprefix("./"), context) for line in lines_of(printable(text))] if text else []
    if result.ended == "timeout":
        lines.append("[the search took too long and was stopped; search a smaller part, or a simpler pattern]")
        return ToolOutput(text="\n".join(lines), is_error=True, truncated=True)
    if status == 2 and "regex parse error" in text:
        raise ToolError(f"bad pattern: {text.strip()}; set literal to search for plain text", code="bad_pattern")
    is_cut = result.truncated or len(lines) > arguments.limit
    lines = lines[: arguments.limit]
    if is_cut:
        lines.append(f"[cut at {len(lines)} lines; narrow the search with path, glob or a longer pattern]")
    return ToolOutput(text="\n".join(lines) or "no matches", truncated=is_cut, data={"lines": len(lines)})


def _without_half(line: str, context: ToolContext) -> str:
    """A line that the searcher has cut may end in half a secret."""
    for mark in CUT_MARKS:
        if line.endswith(mark):
            return context.redactor.beginning(line.removesuffix(mark)) + mark
    return line


def _split_status(result: ProgramResult, mark: str) -> tuple[str, int]:
    """The output without the line that carries rg's status, and the status."""
    before, found, after = result.output.partition(mark)
    number, _, rest = after.partition("\n")
    if not found or not number.isdigit():
        return result.output, result.exit_status
    return before + rest, int(number)


GREP = Tool(
    name="grep",
    description=(
        "Search the files of the working directory by regular expression, line by line. What .gitignore leaves out "
        "and binary files are skipped. Output is `path:line:text`."
    ),
    arguments=GrepArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(trees=(arguments.path,)),
    timeout_s=30.0,
)
