"""handoff: another agent takes the conversation over, and what it comes to is what this turn comes to."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.send_message import MAX_TEXT_CHARS
from ottod.tools.spawn_agent import WAIT_S


class HandoffArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who takes over, and why."""

    agent: Annotated[str, Meta(min_length=1, description="One of the agents that this one may hand over to.")]
    reason: Annotated[str, Meta(min_length=1, max_length=500, description="Why that agent, in a sentence.")]
    note: Annotated[
        str,
        Meta(
            max_length=MAX_TEXT_CHARS,
            description="What it should know or do besides what was said: it has the whole conversation so far.",
        ),
    ] = ""


async def run(arguments: HandoffArguments, context: ToolContext) -> ToolOutput:
    """The successor's last answer, which ends this turn as well. Cancelling the call stops the successor."""
    sessions = context.sessions
    if sessions is None:
        raise ToolError("there are no other agents here", code="no_sessions")
    child, name = await sessions.hand_over(
        agent=arguments.agent,
        reason=arguments.reason,
        note=arguments.note,
        call=context.call,
        key=context.idempotency_key,
    )
    context.progress(f"{name} ({child}) has the conversation")
    try:
        async with asyncio.timeout(context.timeout_s):
            end = await sessions.wait_ended(child)
    except asyncio.CancelledError:
        await sessions.stop(child, "the turn that handed over to it was cancelled")
        raise
    except TimeoutError as error:
        await sessions.stop(child, "the turn that handed over to it is out of time")
        raise ToolError(
            f"session {child} did not end within {context.timeout_s:g} s and is being stopped", code="timeout"
        ) from error
    text = end.result if end.is_completed else f"{name} ({child}): {end.cause}\n\n{end.result}".rstrip()
    return ToolOutput(
        text=text,
        is_error=not end.is_completed,
        ends_turn=True,
        data={"child": child, "name": name, "cause": end.cause},
    )


HANDOFF = Tool(
    name="handoff",
    description=(
        "Hand the conversation over to another agent that is better suited: it reads all of it and works on, and its "
        "answer is the answer to whoever waits for yours. Your part ends with this call, so make it alone, without "
        "other calls beside it."
    ),
    arguments=HandoffArguments,
    permissions=frozenset({"exec"}),
    # The key of the call is the successor's: asked again, the daemon gives the one that is there already.
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(agents=(arguments.agent,)),
    timeout_s=WAIT_S,
    waits=True,
)
