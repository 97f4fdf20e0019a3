"""await_agents: waits for the ends of other agents of the tree."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.tools.base import AgentEnd, Facts, Tool, ToolContext, ToolOutput, team_of

AWAIT_TIMEOUT_S = 24 * 3600.0
"""The longest that anybody may wait for an end."""
Name = Annotated[str, Meta(min_length=1, max_length=100)]


class AwaitArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For whom to wait."""

    agents: Annotated[
        tuple[Name, ...], Meta(min_length=1, max_length=500, description="Names as in list_agents, or sessions' ids.")
    ]
    mode: Annotated[
        Literal["all", "any"], Meta(description="Wait until all have ended, or until any of them has.")
    ] = "all"
    timeout_s: Annotated[int, Meta(ge=1, le=int(AWAIT_TIMEOUT_S), description="How long to wait, in seconds.")] = int(
        AWAIT_TIMEOUT_S
    )


async def run(arguments: AwaitArguments, context: ToolContext) -> ToolOutput:
    """How each ended, and its last answer. Cancelling the call stops nobody."""
    team = team_of(context)
    try:
        async with asyncio.timeout(arguments.timeout_s):
            ends = await team.wait_ended(arguments.agents, mode=arguments.mode, key=context.idempotency_key)
    except TimeoutError as error:
        raise ToolError(
            f"not within {arguments.timeout_s} s; those who live go on",
            code="timeout",
            mend="wait again, or see with list_agents what they are doing",
        ) from error
    parts = [_part(end) for end in ends]
    if arguments.mode == "any" and len(ends) < len(set(arguments.agents)):
        parts.append("The others go on.")
    return ToolOutput(
        text="\n\n".join(parts),
        is_error=any(end.cause.kind != "completed" for end in ends),
        data={"ended": [{"session": e.session, "name": e.name, "cause": str(e.cause)} for e in ends]},
    )


def _part(end: AgentEnd) -> str:
    why = f": {end.cause.message}" if end.cause.message else ""
    return f"{end.name} ({end.session}, runs {end.role}): {end.cause}{why}\n\n{end.result}".rstrip()


AWAIT_AGENTS = Tool(
    name="await_agents",
    description=(
        "Wait until other agents of this tree have ended, all of them or any, and get how each ended and its last "
        "answer. What is told here comes as no message. One that crashed can be replaced by another with its name."
    ),
    arguments=AwaitArguments,
    permissions=frozenset(),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(agents=arguments.agents),
    timeout_s=AWAIT_TIMEOUT_S,
    waits=True,
)
