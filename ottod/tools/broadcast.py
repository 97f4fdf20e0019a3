"""broadcast: a word to all agents of the tree, or to all of one kind."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput, team_of
from ottod.tools.send_message import MAX_TEXT_CHARS, SEND_TIMEOUT_S

EVERYBODY = "all"


class BroadcastArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To whom, and what."""

    to: Annotated[
        str, Meta(min_length=1, max_length=100, description="The name of an agent, for all that run it; or `all`.")
    ]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS, description="What they are told.")]


async def run(arguments: BroadcastArguments, context: ToolContext) -> ToolOutput:
    """Returns once each has the message, or cannot have it."""
    role = "*" if arguments.to == EVERYBODY else arguments.to
    deliveries = await team_of(context).send(role=role, text=arguments.text, key=context.idempotency_key)
    told = [delivery for delivery in deliveries if delivery.failure is None]
    lines = [f"{len(told)} of {len(deliveries)} have the message"]
    lines += [f"not {d.name}: {d.failure.message}" for d in deliveries if d.failure is not None]
    return ToolOutput(text="\n".join(lines), is_error=not told, data={"told": [d.name for d in told]})


BROADCAST = Tool(
    name="broadcast",
    description=(
        "Tell all other agents of this tree the same, or all that run one agent. As send_message; the result says "
        "who could not be told."
    ),
    arguments=BroadcastArguments,
    permissions=frozenset(),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(agents=("" if arguments.to == EVERYBODY else arguments.to,)),
    timeout_s=SEND_TIMEOUT_S,
    waits=True,
)
