"""The terminal side of a session's stream: writes what the renderer says, and turns its spinner."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from ottoctl.console import Console, encode_json
from ottoctl.feed import SessionEvent
from ottoctl.rendering.stream import FRAME_NS, Chunk, StreamRenderer
from ottoctl.results import event_record
from ottoctl.streams import OutputError, put
from ottod.protocol.events import SessionExited, SessionStateChanged


class View:
    """What a watching command shows of a session.

    As text: the agent's words to stdout, everything else to stderr (or with `all_to_stdout` too). As jsonl: every
    event, one line each. As json: nothing; the command prints its result at the end.
    """

    def __init__(
        self, console: Console, *, live: bool, all_to_stdout: bool = False, show_input: bool, show_turns: bool
    ) -> None:
        self._console = console
        out_tty, err_tty = sys.stdout.isatty(), sys.stderr.isatty()
        view_tty = out_tty if all_to_stdout else err_tty
        self._view = sys.stdout if all_to_stdout else sys.stderr
        self._renderer = StreamRenderer(
            color=console.color if all_to_stdout else console.color_err,
            live=live and view_tty and console.output == "text",
            width=shutil.get_terminal_size().columns if view_tty else 0,
            split=not all_to_stdout and not (out_tty and err_tty),
            show_input=show_input,
            show_turns=show_turns,
        )
        console.announce = self.interject
        self._held: Tail | None = None
        self._live = self._renderer.live

    def show(self, event: SessionEvent) -> None:
        """One more event."""
        if self._console.output == "text":
            self._write(self._renderer.event(event, now_ns=time.time_ns()))
        elif self._console.output == "jsonl":
            line = encode_json(event_record(event)) + "\n"
            if self._held is not None:
                self._held.add(line)
            else:
                self._console.write(line)
                self._console.flush()

    def hold(self, lines: int) -> None:
        """Keeps what is shown from now on to itself, to be cut to its last lines."""
        self._held, self._renderer.live = Tail(lines), False

    def release(self) -> None:
        """Shows the last lines of what was held."""
        held, self._held, self._renderer.live = self._held, None, self._live
        if held is not None:
            put(self._view if self._console.output == "text" else sys.stdout, held.text, flush=True)

    def say(self, text: str) -> None:
        """A message of the command's own, out of the way of the live region."""
        self._write(self._renderer.finish())
        self._console.message(text)

    def interject(self, text: str) -> None:
        """The same in the middle of things: they go on below it."""
        with suppress(OutputError, BrokenPipeError):
            # Whoever cannot be written to is found out by the next event.
            self._write(self._renderer.aside())
        self._console.message(text)

    def finish(self) -> None:
        self._write(self._renderer.finish())

    async def spin(self) -> None:
        """Turns the spinner until cancelled."""
        while True:
            await asyncio.sleep(FRAME_NS / 1e9)
            if self._renderer.has_live_region:
                self._renderer.width = shutil.get_terminal_size().columns
                self._write(self._renderer.tick(now_ns=time.time_ns()))

    def _write(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            stream = sys.stdout if chunk.to == "text" else self._view
            if self._held is not None:
                self._held.add(chunk.text)
            else:
                put(stream, chunk.text, flush=True)


class Tail:
    """The last lines of a text that comes in pieces."""

    def __init__(self, lines: int) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._rest: list[str] = []

    def add(self, text: str) -> None:
        """The next piece."""
        *whole, rest = text.split("\n")
        if whole:
            self._lines.append("".join([*self._rest, whole[0], "\n"]))
            self._lines.extend(line + "\n" for line in whole[1:])
            self._rest.clear()
        if rest:
            self._rest.append(rest)

    @property
    def text(self) -> str:
        """What is left of it; a line that has no end yet counts as one."""
        lines = self._lines.copy()
        if self._rest:
            lines.append("".join(self._rest))
        return "".join(lines)


async def watch(
    view: View,
    events: AsyncGenerator[SessionEvent, None],
    *,
    until_idle: bool = False,
    parked_from: int | None = 0,
) -> str:
    """Shows events until the session has ended, is parked or (`until_idle`) waits for input; returns which:
    `ended`, `parked`, `idle`, or `cut` when the stream ended before.

    What lies before the offset `parked_from` is history: a session that was parked then may have gone on since.
    With None parked sessions are waited for.
    """
    spinner = asyncio.create_task(view.spin())
    try:
        async with aclosing(events):
            async for event in events:
                view.show(event)
                match event.event:
                    case SessionExited():
                        return "ended"
                    case SessionStateChanged(state="parked") if parked_from is not None:
                        if event.offset >= parked_from:
                            return "parked"
                    case SessionStateChanged(state="idle") if until_idle:
                        return "idle"
        return "cut"
    finally:
        spinner.cancel()
        view.finish()
