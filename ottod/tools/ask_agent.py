"""ask_agent: a question to another agent of the tree, and its answer."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.tools.base import AgentAnswer, Facts, Tool, ToolContext, ToolOutput, team_of
from ottod.tools.send_message import MAX_TEXT_CHARS

ASK_TIMEOUT_S = 24 * 3600.0
"""The longest that anybody may wait for an answer."""
DEFAULT_TIMEOUT_S = 900


class AskArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is asked, and what."""

    to: Annotated[
        str, Meta(min_length=1, max_length=100, description="A name as in list_agents, a session's id, or `parent`.")
    ]
    question: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARS, description="What you want to know.")]
    timeout_s: Annotated[
        int, Meta(ge=1, le=int(ASK_TIMEOUT_S), description="How long to wait for the answer, in seconds.")
    ] = DEFAULT_TIMEOUT_S


async def run(arguments: AskArguments, context: ToolContext) -> ToolOutput:
    """The answer. Cancelling the call withdraws the question."""
    said = await ask(
        context,
        to=arguments.to,
        question=arguments.question,
        key=context.idempotency_key,
        timeout_s=arguments.timeout_s,
    )
    return ToolOutput(
        text=f"{said.name} ({said.session}) {how(said)}",
        is_error=said.outcome != "completed",
        data={"session": said.session, "name": said.name, "outcome": said.outcome, "reused": bool(said.reused_at_ns)},
    )


async def ask(context: ToolContext, *, to: str, question: str, key: str, timeout_s: float) -> AgentAnswer:
    """The answer, if it comes in time. Raises ToolError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await team_of(context).ask(to=to, question=question, key=key)
    except TimeoutError as error:
        raise ToolError(
            f"{to} did not answer within {timeout_s:g} s; the question is withdrawn, or its answer will not be heard",
            code="timeout",
            mend="ask again with more time, or see with list_agents what it is doing",
        ) from error


def how(said: AgentAnswer) -> str:
    """`answers:` and the answer, or why there is none."""
    if said.outcome == "completed" and said.reused_at_ns:
        return f"was asked the same before, and nothing has changed since. It answered:\n\n{said.text}".rstrip()
    if said.outcome == "completed":
        return f"answers:\n\n{said.text}".rstrip()
    why = f": {said.failure.message}" if said.failure is not None else ""
    return f"has no answer: its turn was {said.outcome}{why}\n\n{said.text}".rstrip()


ASK_AGENT = Tool(
    name="ask_agent",
    description=(
        "Ask another agent of this tree something and wait for its answer. The question begins a turn of its own "
        "there, once the agent has nothing else to do; it knows nothing of this conversation. Agents that wait for "
        "each other are found out, and the call is refused."
    ),
    arguments=AskArguments,
    permissions=frozenset(),
    # The key of the call is the question's: asked again, it is the same question.
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(agents=(arguments.to,)),
    timeout_s=ASK_TIMEOUT_S,
    waits=True,
)
