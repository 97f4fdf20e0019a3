"""`ottoctl logs`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import SessionId
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.moments import FORMS, since_ns_of

if TYPE_CHECKING:
    from ottoctl.commands.view import View
    from ottoctl.feed import SessionEvent
    from ottoctl.session import Session


@command
def logs(
    console: Console,
    id: SessionId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the session ends")] = False,
    start: Annotated[int, typer.Option("--from", min=0, metavar="OFFSET", help="Only from this offset on")] = 0,
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help=f"Only what happened since then: {FORMS}")
    ] = "",
    tail: Annotated[
        int | None,
        typer.Option(
            "-n", "--tail", min=0, metavar="N", help="Only the last N lines of what there is, or events as JSON"
        ),
    ] = None,
) -> int | None:
    """Show what a session said and did, for people to read

    Example: `ottoctl logs -f 7f3k`; `ottoctl logs --since 15m --tail 20 7f3k`
    """
    since_ns = since_ns_of(since, now_s=time.time()) if since else 0
    return asyncio.run(_logs(console, id, follow, start, since_ns, tail))


async def _logs(
    console: Console, prefix: str, follow: bool, start: int, since_ns: int, tail: int | None
) -> int | None:
    from ottoctl.commands.view import View, watch
    from ottoctl.results import event_record

    async with console.connect_async() as otto:
        session = await otto.session(prefix)
        if console.output == "json":
            async with aclosing(_events(session, start, follow, since_ns)) as events:
                records = [event_record(event) async for event in events]
            console.records(records if tail is None else records[max(0, len(records) - tail) :])
            return None
        view = View(console, live=follow, all_to_stdout=True, show_input=True, show_turns=True)
        if tail is not None:
            view.hold(tail)
            start, has_ended = await _show(view, _events(session, start, False, since_ns), start)
            if has_ended or not follow:
                view.finish()
                view.release()
                return None
            view.release()
        await watch(view, _events(session, start, follow, since_ns), parked_from=None)
    return None


async def _show(view: View, history: AsyncGenerator[SessionEvent, None], start: int) -> tuple[int, bool]:
    """Shows what there is; gives from which offset on it goes on, and whether the session has ended."""
    from ottod.protocol.events import Gap, SessionExited

    has_ended = False
    async with aclosing(history):
        async for event in history:
            view.show(event)
            start = (event.event.last if isinstance(event.event, Gap) else event.offset) + 1
            has_ended = isinstance(event.event, SessionExited)
    return start, has_ended


async def _events(session: Session, start: int, follow: bool, since_ns: int) -> AsyncGenerator[SessionEvent, None]:
    """The session's events since then; what is missing is told whenever it was."""
    async with aclosing(session.events(start, follow=follow)) as events:
        async for event in events:
            if event.at_ns >= since_ns or not event.at_ns:
                yield event
