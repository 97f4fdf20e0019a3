"""The other sessions of the tree, for tools: spoken to, asked, waited for. Root knows who they are."""

from __future__ import annotations

from ottod.errors import OttoError, ToolError
from ottod.protocol.events import MessageSent
from ottod.protocol.worker import AgentCard, Delivery, ListAgents, RequestReply, SendMessage, WorkerRequestBody
from ottod.worker.inbox import SHOWN_BYTES
from ottod.worker.link import Link
from ottod.worker.text import cut


class Team:
    """As one session has it."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def send(self, *, text: str, key: str, to: str = "", role: str = "") -> tuple[Delivery, ...]:
        """A message to one session, or to all of a role; the same key is heard once. Raises ToolError."""
        reply = await self._ask(SendMessage(text=text, key=key, to=to, role=role))
        for delivery in reply.deliveries:
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
        return reply.deliveries

    async def list(self) -> tuple[AgentCard, ...]:
        """Who is there. Raises ToolError."""
        return (await self._ask(ListAgents())).agents

    async def _ask(self, body: WorkerRequestBody) -> RequestReply:
        try:
            return await self._link.ask(body)
        except OttoError as error:
            raise ToolError(error.message, code=error.code, mend=error.mend) from error
