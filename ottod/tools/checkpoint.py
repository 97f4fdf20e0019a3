"""checkpoint: a named point of the conversation, to fork at."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput


class CheckpointArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which point."""

    # Not a number: that would be a turn's.
    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$",
            description="What it is called, such as `tests-green`. A name that is used again moves.",
        ),
    ]


async def run(arguments: CheckpointArguments, context: ToolContext) -> ToolOutput:
    """Says that it is noted, once it is."""
    if context.checkpoint is None:
        raise ToolError("there is no session here whose conversation could be gone back to", code="no_session")
    turn = await context.checkpoint(arguments.name)
    return ToolOutput(text=f"checkpoint {arguments.name} is noted, in turn {turn}; it does not hold files")


CHECKPOINT = Tool(
    name="checkpoint",
    description=(
        "Give this point of the conversation a name, from which it can be gone on with later, by another session "
        "too. Use it when a part of the work is done, or before you try what may fail. Files are not part of it."
    ),
    arguments=CheckpointArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(),
    timeout_s=30.0,
)
