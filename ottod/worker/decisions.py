"""The session's view of its project's decision graph. Root keeps it; what is said here has been redacted before."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ottod.errors import OttoError, ToolError
from ottod.protocol.decisions import MAX_CALL_BYTES, DecisionFilter, FoundDecisions, NewEdge, NewNode, NodeChange
from ottod.protocol.events import DecisionLogged
from ottod.protocol.worker_requests import FindDecisions, LogDecisions, RequestReply
from ottod.worker.link import Link


class Decisions:
    """Of one session: it may add to its project's graph, change it, and look at it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._told: set[str] = set()

    async def log(
        self, nodes: Sequence[NewNode], edges: Sequence[NewEdge], changes: Sequence[NodeChange], *, key: str
    ) -> FoundDecisions:
        """Adds and changes, all or nothing; when it returns, it is durable, and told in an event.

        The same key gives the same nodes, whatever happened in between. Raises ToolError.
        """
        body = self._link.redacted(
            LogDecisions(key=key, nodes=tuple(nodes), edges=tuple(edges), changes=tuple(changes))
        )
        size_bytes = len(msgspec.msgpack.encode(body))
        if size_bytes > MAX_CALL_BYTES:
            raise ToolError(f"a call of {size_bytes} bytes; {MAX_CALL_BYTES} is the limit", code="too_large")
        found = await self._ask(body)
        if key not in self._told:
            self._told.add(key)
            # An earlier incarnation may have told it already: nobody knows, and twice is harmless.
            first = found.nodes[0] if found.nodes else None
            self._link.emit(
                DecisionLogged(
                    nodes=tuple(node.node for node in found.nodes),
                    kind=first.kind if first is not None else "",
                    title=first.title if first is not None else "",
                    edges=len(edges),
                )
            )
        return found

    async def find(self, wanted: DecisionFilter) -> FoundDecisions:
        """Nodes of the project, and the edges between them. Raises ToolError."""
        return await self._ask(FindDecisions(filter=wanted))

    async def _ask(self, body: LogDecisions | FindDecisions) -> FoundDecisions:
        try:
            reply: RequestReply = await self._link.ask(body)
        except OttoError as error:
            mend = f"; {error.mend}" if error.mend and error.code != "too_many_decisions" else ""
            raise ToolError(error.message + mend, code=error.code) from error
        return reply.decisions or FoundDecisions()
