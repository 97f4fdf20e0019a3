"""send_message: a word to another agent of the tree."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput, team_of

SEND_TIMEOUT_S = 120.0
MAX_TEXT_CHARS = 16 * 1024


class SendArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To whom, and what."""

    to: Annotated[
        str, Meta(min_length=1, max_length=100, description="A name as in list_agents, a session's id, or `parent`.")
    ]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS, description="What it is told.")]


async def run(arguments: SendArguments, context: ToolContext) -> ToolOutput:
    """Returns once the message cannot be lost any more."""
    (delivery,) = await team_of(context).send(to=arguments.to, text=arguments.text, key=context.idempotency_key)
    held_up = f", after {delivery.waited_ms / 1000:.1f} s without room for it" if delivery.waited_ms >= 1000 else ""
    return ToolOutput(
        text=f"{delivery.name} ({delivery.session}) has the message{held_up}",
        data={"session": delivery.session, "name": delivery.name},
    )


SEND_MESSAGE = Tool(
    name="send_message",
    description=(
        "Tell another agent of this tree something. It hears it before its next model call, or begins a turn "
        "with it, and the call does not wait for that. Use ask_agent for an answer."
    ),
    arguments=SendArguments,
    permissions=frozenset(),
    # The key of the call is the message's, and a message is heard once.
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(agents=(arguments.to,)),
    timeout_s=SEND_TIMEOUT_S,
    waits=True,
)
