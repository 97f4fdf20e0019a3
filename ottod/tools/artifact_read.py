"""artifact_read: what this or another agent of the tree has kept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.protocol.artifacts import ArtifactInfo
from ottod.settings.units import plural
from ottod.tools.artifact_write import artifacts_of
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.text import decode_text, lines_of

NOTE_BYTES = 300
"""What the head and the last line may take of the output."""


class ArtifactReadArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which artifact, and how much of it."""

    artifact: Annotated[str, Meta(min_length=1, max_length=200, description="Its name, or its id.")]
    version: Annotated[int, Meta(ge=0, description="Which version of a name; 0 for the newest.")] = 0
    offset: Annotated[int, Meta(ge=1, description="The first line to show, counted from 1.")] = 1
    limit: Annotated[int, Meta(ge=1, description="How many lines to show.")] = 2000
    to: Annotated[str, Meta(description="Write it to this file of the working directory instead of showing it.")] = ""


async def run(arguments: ArtifactReadArguments, context: ToolContext) -> ToolOutput:
    """A line about the artifact, then its text."""
    info, data = await artifacts_of(context).read(arguments.artifact, version=arguments.version)
    if arguments.to:
        is_new = await context.in_thread(context.files.write, arguments.to, data)
        done = "created" if is_new else "replaced"
        return ToolOutput(text=f"{done} {arguments.to} from {describe(info)}", data={"artifact": info.artifact})
    lines = lines_of(decode_text(data, path=info.name).text)
    shown, was_cut = _window(lines, arguments, context.max_output_bytes - NOTE_BYTES)
    last = arguments.offset - 1 + len(shown)
    text = "\n".join([f"[{describe(info)}]", *shown])
    if was_cut or last < len(lines):
        text += f"\n[{plural(len(lines), 'line')} in all; go on with offset {last + 1}]"
    return ToolOutput(text=text, truncated=last < len(lines), data={"artifact": info.artifact})


def describe(info: ArtifactInfo) -> str:
    """`design.md, version 2, a design of 512 bytes by architect (art-…)`."""
    by = f" by {info.agent}" if info.agent else ""
    return (
        f"{info.name}, version {info.version}, {info.kind}, {plural(info.size_bytes, 'byte')}{by} ({info.artifact})"
    )


def _window(lines: list[str], arguments: ArtifactReadArguments, room_bytes: int) -> tuple[list[str], bool]:
    shown: list[str] = []
    for line in lines[arguments.offset - 1 : arguments.offset - 1 + arguments.limit]:
        room_bytes -= len(line.encode("utf-8", "replace")) + 1
        if room_bytes < 0:
            if not shown:
                shown.append(line.encode("utf-8", "replace")[:room_bytes].decode("utf-8", "ignore") + " […]")
            return shown, True
        shown.append(line)
    return shown, False


ARTIFACT_READ = Tool(
    name="artifact_read",
    description=(
        "Read an artifact of this session tree, by name or id, or write it to a file of the working directory."
    ),
    arguments=ArtifactReadArguments,
    permissions=frozenset({"read", "write"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(writes=(arguments.to,) if arguments.to else ()),
    timeout_s=30.0,
)
