"""spawn_agent: another agent, in a session of its own below this one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.tools.ask_agent import ask, how
from ottod.tools.base import ChildEnd, Facts, Sessions, Tool, ToolContext, ToolOutput

TITLE_CHARS = 80
WAIT_S = 24 * 3600.0
"""The longest wait for a child. Its own budgets and time-outs are what ends it before."""


class SpawnArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is to do what."""

    task: Annotated[
        str,
        Meta(min_length=1, description="What it is to do. It knows nothing of this conversation: say all it needs."),
    ]
    agent: Annotated[
        str,
        Meta(
            description="The name of the agent, as in `ottoctl agent list`. Without one, the agent is started whose "
            "description fits the words of the task best."
        ),
    ] = ""
    wait: Annotated[
        bool,
        Meta(
            description="Wait for its result. If false, the call returns at once and the result comes as a message."
        ),
    ] = True
    title: Annotated[str, Meta(max_length=200, description="A few words for lists of sessions.")] = ""
    model: Annotated[str, Meta(description="Another model than the agent's own, as alias or provider:model.")] = ""
    name: Annotated[
        str,
        Meta(max_length=80, description="What it is called here; else its agent's name, with a number from #2 on."),
    ] = ""
    mode: Annotated[
        Literal["oneshot", "conversation"],
        Meta(
            description="A `conversation` stays when it has answered, to be asked again with ask_agent, until you "
            "end it with stop_agent or your own work is done."
        ),
    ] = "oneshot"


async def run(arguments: SpawnArguments, context: ToolContext) -> ToolOutput:
    """The child's id, how it ended, and its last answer. Cancelling the call stops the child."""
    sessions = context.sessions
    if sessions is None:
        raise ToolError("no agents can be started here", code="no_sessions")
    if arguments.mode == "oneshot":
        known = await sessions.recall(
            agent=arguments.agent, task=arguments.task, model=arguments.model, key=context.idempotency_key
        )
        if known is not None:
            before = f"agent {arguments.agent} was asked the same before (session {known.session})"
            text = f"{before}, and no file has changed since:\n\n{known.text}"
            return ToolOutput(text=text, data={"child": known.session, "reused": True})
    is_asked = arguments.mode == "conversation" and arguments.wait
    child, name = await sessions.spawn(
        agent=arguments.agent,
        # The task of a conversation is the first thing that it is asked.
        task="" if is_asked else arguments.task,
        title=arguments.title or (" ".join(arguments.task.split())[:TITLE_CHARS] if is_asked else ""),
        model=arguments.model,
        key=context.idempotency_key,
        is_reported=not arguments.wait or is_asked,
        name=arguments.name,
        mode=arguments.mode,
        hint="" if arguments.agent else arguments.task,
    )
    who = _who(child, name, arguments.agent)
    context.progress(f"{who} has started")
    if not arguments.wait:
        text = f"{who} has started; its result will come as a message"
        return ToolOutput(text=text, data={"child": child, "name": name})
    if is_asked:
        return await _first_answer(arguments, context, sessions, child, who)
    end = await end_of(child, context, sessions)
    return ToolOutput(
        text=f"{who}: {end.cause}\n\n{end.result}".rstrip(),
        is_error=not end.is_completed,
        data={"child": child, "name": name, "cause": end.cause},
    )


async def end_of(
    child: str, context: ToolContext, sessions: Sessions, *, waits: str = "the call that waited for it"
) -> ChildEnd:
    """How a child ends; it is stopped if what `waits` is cancelled, or out of time. Raises ToolError."""
    try:
        async with asyncio.timeout(context.timeout_s):
            return await sessions.wait_ended(child)
    except asyncio.CancelledError:
        await sessions.stop(child, f"{waits} was cancelled")
        raise
    except TimeoutError as error:
        await sessions.stop(child, f"{waits} was out of time")
        raise ToolError(
            f"session {child} did not end within {context.timeout_s:g} s and is being stopped", code="timeout"
        ) from error


async def _first_answer(
    arguments: SpawnArguments, context: ToolContext, sessions: Sessions, child: str, who: str
) -> ToolOutput:
    """What a conversation says to its task. Cancelling the call stops it."""
    key = f"{context.idempotency_key}/task"
    try:
        said = await ask(context, to=child, question=arguments.task, key=key, timeout_s=context.timeout_s)
    except asyncio.CancelledError:
        await sessions.stop(child, "the call that waited for it was cancelled")
        raise
    return ToolOutput(
        text=f"{who} {how(said)}",
        is_error=said.outcome != "completed",
        data={"child": child, "name": said.name, "outcome": said.outcome},
    )


def _who(child: str, name: str, agent: str) -> str:
    if not agent:
        return f"session {child} ({name})"
    called = f" ({name})" if name not in ("", agent) else ""
    return f"session {child}{called} of agent {agent}"


SPAWN_AGENT = Tool(
    name="spawn_agent",
    description=(
        "Let another agent do a task, in a session of its own with this working directory, and get its last answer. "
        "Several calls in one response run side by side. With wait: false the call returns at once, and the answer "
        "comes later, as a message."
    ),
    arguments=SpawnArguments,
    permissions=frozenset({"exec"}),
    # The key of the call is the child's: asked again, the daemon gives the child that is there already.
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(agents=(arguments.agent,)),
    timeout_s=WAIT_S,
    waits=True,
)
