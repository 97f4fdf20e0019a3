"""artifact_list: what the agents of the tree have kept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.tools.artifact_read import describe
from ottod.tools.artifact_write import artifacts_of
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput


class ArtifactListArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which artifacts."""

    kind: Annotated[str, Meta(max_length=50, description="Only of this kind, such as `design`.")] = ""
    name: Annotated[str, Meta(max_length=100, description="All versions of this name.")] = ""


async def run(arguments: ArtifactListArguments, context: ToolContext) -> ToolOutput:
    """A line for each, newest first."""
    found = await artifacts_of(context).list(name=arguments.name, kind=arguments.kind)
    lines, room_bytes = [], context.max_output_bytes - 100
    for info in found:
        sources = f", made from {', '.join(info.sources)}" if info.sources else ""
        room_bytes -= len(line := describe(info) + sources) + 1
        if room_bytes < 0:
            lines.append("[there are more; ask for a kind or a name]")
            break
        lines.append(line)
    return ToolOutput(text="\n".join(lines) or "there are no such artifacts", truncated=room_bytes < 0)


ARTIFACT_LIST = Tool(
    name="artifact_list",
    description="List the artifacts that the agents of this session tree have kept, newest first.",
    arguments=ArtifactListArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(),
    timeout_s=30.0,
)
