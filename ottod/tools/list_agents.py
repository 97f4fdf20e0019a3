"""list_agents: who is there in the tree."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.tools.base import AgentCard, Facts, Tool, ToolContext, ToolOutput, team_of


class ListArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to list."""

    ended: Annotated[bool, Meta(description="Also those that have ended, with how.")] = True


async def run(arguments: ListArguments, context: ToolContext) -> ToolOutput:
    """A line for each."""
    cards = [card for card in await team_of(context).list() if arguments.ended or card.cause is None]
    lines = [_line(card, is_self=card.session == context.session) for card in cards]
    return ToolOutput(text="\n".join(lines), data={"agents": [msgspec.to_builtins(card) for card in cards]})


def _line(card: AgentCard, *, is_self: bool) -> str:
    state = str(card.cause) if card.cause is not None else card.state
    facts = [f"runs {card.role}", state]
    facts += ["can be asked again"] if card.mode == "conversation" and card.cause is None else []
    facts += [f"below {card.above}"] if card.above else []
    facts += ["this session"] if is_self else []
    title = f" — {card.title}" if card.title else ""
    return f"{card.name} ({card.session}): {', '.join(facts)}{title}"


LIST_AGENTS = Tool(
    name="list_agents",
    description="The agents of this tree of sessions: name, id, what each runs, what it is doing, or how it ended.",
    arguments=ListArguments,
    permissions=frozenset(),
    idempotent=True,
    run=run,
    touches=lambda arguments: Facts(),
)
