"""`ottoctl attach`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import SessionId
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import CRASHED, OK, status_of_cause
from ottod.errors import OttoError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ottoctl.commands.view import View
    from ottoctl.session import Session

READ_BYTES = 64 * 1024


@command
def attach(
    console: Console,
    id: SessionId,
    start: Annotated[
        int, typer.Option("--from", min=0, metavar="OFFSET", help="Show the history from this offset on")
    ] = 0,
    no_input: Annotated[bool, typer.Option("--no-input", help="Only watch")] = False,
) -> int | None:
    """Watch a session live and talk to it; Ctrl-C or Ctrl-D detaches and leaves it running

    Every line typed is a message, heard at the start of the next turn. From a file or a pipe its lines are sent, and
    its end detaches; only to watch, `--no-input`.

    Example: `ottoctl attach 7f3k`
    """
    return asyncio.run(_attach(console, id, start, takes_input=not no_input))


async def _attach(console: Console, prefix: str, start: int, *, takes_input: bool) -> int:
    from ottoctl.commands.view import View, watch

    async with console.connect_async() as otto:
        session = await otto.session(prefix)
        view = View(console, live=True, show_input=True, show_turns=True)
        loop = asyncio.get_running_loop()
        detached = asyncio.Event()
        loop.add_signal_handler(signal.SIGINT, detached.set)
        info = await session.info()
        watching = asyncio.create_task(watch(view, session.events(start), parked_from=info.last_offset))
        leaving = asyncio.create_task(detached.wait())
        # Whoever has ended hears nothing: its history is shown to the end, whatever stdin is.
        typist = Typist(view, session, detached) if takes_input and info.state != "ended" else None
        try:
            await asyncio.wait({watching, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not watching.done():
                view.say(f"detached; {session.id} goes on: `ottoctl attach {session.id}`")
                return OK
            return await _outcome(session, watching.result())
        finally:
            if typist is not None:
                typist.close()
            for task in (watching, leaving):
                task.cancel()
            await asyncio.gather(watching, leaving, return_exceptions=True)


async def _outcome(session: Session, how: str) -> int:
    """What the watching amounts to. A stream can end without the event of the session's end: that has left the ring,
    or lies before what was asked for."""
    if how == "parked":
        return CRASHED
    try:
        info = await session.info()
    except UnreachableError:
        if how == "cut":
            return OK  # The daemon has gone, and the session perhaps not.
        raise
    return OK if how == "cut" and info.state != "ended" else status_of_cause(info.cause)


class Typist:
    """Reads lines from stdin and sends each; the end of stdin detaches."""

    def __init__(self, view: View, session: Session, detached: asyncio.Event) -> None:
        self._view = view
        self._session = session
        self._detached = detached
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._sends: set[asyncio.Task[None]] = set()
        self._fd = sys.stdin.fileno()
        self._is_polled = True
        try:
            self._loop.add_reader(self._fd, self._on_input)
        except PermissionError:
            # A file or /dev/null has no readiness to wait for.
            self._is_polled = False
            self._begin(self._read_file())

    def close(self) -> None:
        self._poll_no_more()
        for task in self._sends:
            task.cancel()

    def _poll_no_more(self) -> None:
        if self._is_polled:
            self._loop.remove_reader(self._fd)
            self._is_polled = False

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    def _on_input(self) -> None:
        data = os.read(self._fd, READ_BYTES)
        for text in self._lines_with(data):
            self._begin(self._send(text))
        if not data:
            self._poll_no_more()
            self._begin(self._leave())

    async def _read_file(self) -> None:
        """A thread reads, since a disk can be slow; no faster than lines are taken."""
        while True:
            try:
                data = await asyncio.to_thread(os.read, self._fd, READ_BYTES)
            except OSError as error:
                self._view.say(f"cannot read stdin: {(error.strerror or str(error)).lower()}")
                data = b""
            for text in self._lines_with(data):
                await self._send(text)
            if not data:
                self._detached.set()
                return

    def _lines_with(self, data: bytes) -> list[str]:
        """The lines that these bytes complete; none are the end, which completes the last line."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        texts = (line.decode("utf-8", "replace").strip() for line in lines)
        return [text for text in texts if text]

    async def _send(self, text: str) -> None:
        try:
            await self._session.send(text)
        except OttoError as error:
            self._view.say(f"not sent: {error.message}")

    async def _leave(self) -> None:
        # What was typed is delivered before the connection goes.
        me = asyncio.current_task()
        await asyncio.gather(*(task for task in self._sends if task is not me))
        self._detached.set()
