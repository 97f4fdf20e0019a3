"""A second client that attaches in the middle of a session, from offset 0, and compares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec

from ottoctl.feed import SessionEvent
from ottoctl.private import PrivateDaemon
from ottod.protocol.events import SessionExited, ToolCompleted

LAST_EVENTS_S = 10.0


class Testimony(msgspec.Struct, frozen=True, kw_only=True):
    """What the second client saw. `difference` is empty if it was the same."""

    events: int
    attached_after: int
    difference: str = ""


class Witness:
    """Listens with the first client; with the first completed tool call it sends in the second."""

    def __init__(self, daemon: PrivateDaemon, session: str) -> None:
        self._daemon = daemon
        self._session = session
        self._first: list[SessionEvent] = []
        self._second: asyncio.Task[list[SessionEvent]] | None = None
        self._attached_after = 0

    async def listen(self, events: AsyncIterator[SessionEvent]) -> AsyncGenerator[SessionEvent, None]:
        """Passes the first client's events on, and remembers them."""
        async for event in events:
            self._first.append(event)
            if self._second is None and isinstance(event.event, ToolCompleted):
                self._attached_after = len(self._first)
                self._second = asyncio.create_task(self._attend())
            yield event

    async def _attend(self) -> list[SessionEvent]:
        seen: list[SessionEvent] = []
        async with self._daemon.async_client() as otto:
            session = await otto.session(self._session)
            async with aclosing(session.events(0)) as events:
                async for event in events:
                    seen.append(event)
                    if isinstance(event.event, SessionExited):
                        break
        return seen

    async def finish(self) -> Testimony:
        """Waits for the second client and compares event by event."""
        if self._second is None:
            return Testimony(events=0, attached_after=0, difference="it never attached: no tool call was completed")
        async with asyncio.timeout(LAST_EVENTS_S):
            second = await self._second
        difference = ""
        if second != self._first:
            at = next((i for i, (a, b) in enumerate(zip(self._first, second, strict=False)) if a != b), None)
            where = f"event {at}" if at is not None else "the number of events"
            difference = f"{where} differs ({len(self._first)} and {len(second)} events)"
        return Testimony(events=len(second), attached_after=self._attached_after, difference=difference)
