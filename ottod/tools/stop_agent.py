"""stop_agent: ends an agent that this one has started."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput, team_of


class StopArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to end."""

    agent: Annotated[
        str, Meta(min_length=1, max_length=100, description="The name or session id of one that you have started.")
    ]


async def run(arguments: StopArguments, context: ToolContext) -> ToolOutput:
    """Returns when it has ended, and all below it."""
    card = await team_of(context).end(arguments.agent)
    return ToolOutput(text=f"{card.name} ({card.session}) has ended", data={"session": card.session})


STOP_AGENT = Tool(
    name="stop_agent",
    description="End an agent that you have started, with everything below it; for one that is not needed any more.",
    arguments=StopArguments,
    permissions=frozenset(),
    idempotent=False,
    run=run,
    touches=lambda arguments: Facts(agents=(arguments.agent,)),
    timeout_s=120.0,
    waits=True,
)
