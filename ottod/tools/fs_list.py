"""fs_list: what is in a directory."""

from __future__ import annotations

import itertools
from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.text import printable
from ottod.tools.tree_walk import MAX_DEPTH, Found, walk

DEFAULT_LIMIT = 500
MAX_LIMIT = 10_000
_SUFFIX = {"dir": "/", "symlink": "@", "other": "?", "file": ""}


class ListArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to list."""

    path: Annotated[str, Meta(description="The directory, relative to the working directory.")] = "."
    recursive: Annotated[bool, Meta(description="List the directories below as well.")] = False
    depth: Annotated[int, Meta(ge=1, le=MAX_DEPTH, description="How deep to go when recursive.")] = MAX_DEPTH
    all: Annotated[bool, Meta(description="Show also what .gitignore leaves out, and .git.")] = False
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="The most entries to show.")] = DEFAULT_LIMIT


async def run(arguments: ListArguments, context: ToolContext) -> ToolOutput:
    """One path per line, relative to the working directory; `/` marks directories, `@` symlinks."""
    found, is_cut = await context.in_thread(_collect, arguments, context)
    lines: list[str] = []
    room = context.max_output_bytes - 200
    for each in found:
        line = printable(each.path) + _SUFFIX[each.entry.kind]
        room -= len(line.encode("utf-8", "replace")) + 1
        if room < 0:
            is_cut = True
            break
        lines.append(line)
    shown = len(lines)
    if is_cut:
        lines.append(f"[only the first {shown} entries; list a directory of these]")
    return ToolOutput(text="\n".join(lines) or "(empty)", truncated=is_cut, data={"entries": shown})


def _collect(arguments: ListArguments, context: ToolContext) -> tuple[list[Found], bool]:
    entries = walk(
        context.files,
        arguments.path,
        use_ignore_files=not arguments.all,
        max_depth=arguments.depth if arguments.recursive else 1,
    )
    found = list(itertools.islice(entries, arguments.limit + 1))
    return found[: arguments.limit], len(found) > arguments.limit


def touches(arguments: ListArguments) -> Facts:
    """A directory, and when recursive all below it."""
    place = (arguments.path,)
    return Facts(trees=place) if arguments.recursive else Facts(reads=place)


FS_LIST = Tool(
    name="fs_list",
    description=(
        "List a directory of the working directory, by default one level and without what .gitignore leaves out. "
        "`/` marks directories, `@` symbolic links."
    ),
    arguments=ListArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=run,
    touches=touches,
    timeout_s=30.0,
)
