"""The other sessions of the tree, for tools: spoken to, asked, waited for. Root knows who they are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from ottod.errors import OttoError, ToolError
from ottod.protocol.events import MessageSent, ResearchReused
from ottod.protocol.worker_requests import (
    AgentAnswer,
    AgentCard,
    AgentEnd,
    AskAgent,
    AwaitAgents,
    Delivery,
    ListAgents,
    RequestReply,
    SendMessage,
    WithdrawCall,
    WorkerRequestBody,
)
from ottod.worker.children import Children
from ottod.worker.inbox import SHOWN_BYTES
from ottod.worker.link import Link
from ottod.worker.text import cut


class Team:
    """As one session has it."""

    def __init__(self, link: Link, children: Children) -> None:
        self._link = link
        self._children = children

    async def send(self, *, text: str, key: str, to: str = "", role: str = "") -> tuple[Delivery, ...]:
        """A message to one session, or to all of a role; the same key is heard once. Raises ToolError."""
        reply = await self._ask(SendMessage(text=text, key=key, to=to, role=role))
        for delivery in reply.team.deliveries:
            if delivery.failure is None:
                self._link.emit(
                    MessageSent(
                        message=key,
                        to=delivery.session,
                        text=cut(text, SHOWN_BYTES)[0],
                        name=delivery.name,
                        waited_ms=delivery.waited_ms,
                    )
                )
        return reply.team.deliveries

    async def ask(self, *, to: str, question: str, key: str) -> AgentAnswer:
        """The answer of another session. Cancelled, the question is withdrawn. Raises ToolError."""
        reply = await self._wait(AskAgent(to=to, question=question, key=key), key)
        said = reply.team.said
        assert said is not None
        if said.reused_at_ns:
            text = cut(question, SHOWN_BYTES)[0]
            event = ResearchReused(agent=said.name, question=text, child=said.session, found_at_ns=said.reused_at_ns)
            self._link.emit(event)
        return said

    async def wait_ended(
        self, names: Sequence[str], *, mode: Literal["all", "any"], key: str
    ) -> tuple[AgentEnd, ...]:
        """Those that have ended, once all have, or any. No message tells of them again. Raises ToolError."""
        ends = (await self._wait(AwaitAgents(names=tuple(names), mode=mode, key=key), key)).team.ends
        for end in ends:
            await self._children.learn(end)
        return ends

    async def end(self, name: str) -> AgentCard:
        """Stops a child, and whatever is below it; returns when it has ended. Raises ToolError."""
        card = next((card for card in await self.list() if name in (card.name, card.session)), None)
        if card is None:
            raise ToolError(f"nobody is called {name}", code="no_such_agent", mend="see list_agents")
        await self._children.end(card.session)
        return card

    async def _wait(self, body: AskAgent | AwaitAgents, key: str) -> RequestReply:
        try:
            with self._children.waiting():
                return await self._ask(body)
        except asyncio.CancelledError:
            # The tool's task may be gone before root hears of it.
            self._children.later(self._withdraw(key))
            raise

    async def _withdraw(self, key: str) -> None:
        try:
            await self._link.hear(WithdrawCall(key=key))
        except OttoError:
            pass  # Root drops it with the session at the latest.

    async def list(self) -> tuple[AgentCard, ...]:
        """Who is there. Raises ToolError."""
        return (await self._ask(ListAgents())).team.agents

    async def _ask(self, body: WorkerRequestBody) -> RequestReply:
        try:
            return await self._link.ask(body)
        except OttoError as error:
            raise ToolError(error.message, code=error.code, mend=error.mend) from error
