"""handoff: another agent takes the conversation over, and what it comes to is what this turn comes to."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.tools.base import ChildEnd, Facts, Tool, ToolContext, ToolOutput
from ottod.tools.send_message import MAX_TEXT_CHARS
from ottod.tools.spawn_agent import WAIT_S, end_of


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
    end = await end_of(child, context, sessions, waits="the turn that handed over to it")
    said = await _whole(end, context)
    return ToolOutput(
        text=said if end.is_completed else f"{name} ({child}): {end.cause}\n\n{said}".rstrip(),
        is_error=not end.is_completed,
        ends_turn=True,
        data={"child": child, "name": name, "cause": end.cause},
    )


async def _whole(end: ChildEnd, context: ToolContext) -> str:
    """The successor's answer; all of it where it was kept."""
    if not end.whole or context.artifacts is None:
        return end.result
    try:
        return (await context.artifacts.read(end.whole))[1].decode("utf-8", "replace")
    except ToolError as error:
        # It has done its work: that what it said is cut is no reason to have it done again.
        context.progress(f"its answer is cut: {error.message}")
        return end.result


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
