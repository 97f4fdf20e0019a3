"""artifact_write: a file that other agents of the same tree, and people, can read under its name."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.protocol.artifacts import KINDS, MAX_ARTIFACT_BYTES, MAX_SOURCES
from ottod.settings.units import plural
from ottod.tools.base import Artifacts, Facts, Tool, ToolContext, ToolOutput

Reference = Annotated[str, Meta(min_length=1, max_length=200)]


class ArtifactWriteArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to keep, and what it is."""

    name: Annotated[str, Meta(min_length=1, description="Its name, such as `design.md`. An old name: a new version.")]
    content: Annotated[str | None, Meta(description="The text. Give either this or `file`.")] = None
    file: Annotated[str, Meta(description="A file of the working directory to keep as it is now.")] = ""
    kind: Annotated[str, Meta(description=f"What it is: {', '.join(KINDS)}, or another word.")] = "file"
    sources: Annotated[
        tuple[Reference, ...],
        Meta(
            max_length=MAX_SOURCES, description="The artifacts that it was made from: ids, names, or `NAME@VERSION`."
        ),
    ] = ()


async def run(arguments: ArtifactWriteArguments, context: ToolContext) -> ToolOutput:
    """The artifact's id and version."""
    artifacts = artifacts_of(context)
    if (arguments.content is None) == (not arguments.file):
        raise ToolError("give either content or file", code="bad_arguments")
    if arguments.content is not None:
        data = arguments.content.encode("utf-8", "replace")
    else:
        data = await context.in_thread(context.files.read, arguments.file, max_bytes=MAX_ARTIFACT_BYTES)
    info = await artifacts.write(
        data, name=arguments.name, kind=arguments.kind, sources=arguments.sources, key=context.idempotency_key
    )
    return ToolOutput(
        text=f"kept {info.name}, version {info.version}, {plural(info.size_bytes, 'byte')}, as {info.artifact}",
        data={"artifact": info.artifact, "version": info.version, "digest": info.digest},
    )


def artifacts_of(context: ToolContext) -> Artifacts:
    """Where artifacts are. Raises ToolError outside of a session."""
    if context.artifacts is None:
        raise ToolError("there are no artifacts outside of a session", code="unavailable")
    return context.artifacts


ARTIFACT_WRITE = Tool(
    name="artifact_write",
    description=(
        "Keep a text or a file as an artifact: named, with versions, readable by every agent of this session tree "
        "and by the user, also after the session has ended. Use it to hand work over instead of long messages."
    ),
    arguments=ArtifactWriteArguments,
    permissions=frozenset({"read", "write"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(reads=(arguments.file,) if arguments.file else (), keeps=True),
    timeout_s=30.0,
)
