"""A terminal taken over for a picture that is drawn again and again, and given back as it was, however it ends.

The picture has a screen of its own (the terminal's alternate one), so the shell's is untouched. Keys are read without
Enter and without echo. Ctrl-C, SIGTERM and SIGHUP all leave through `__exit__`.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType
from typing import Any, NoReturn

ENTER = "\x1b[?1049h\x1b[?25l"
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME = "\x1b[H"
ERASE_REST_OF_LINE = "\x1b[K"
ERASE_BELOW = "\x1b[J"
MAX_KEY_BYTES = 64
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Screen:
    """Used with `with`, on a terminal's stdout. Not for several threads."""

    def __init__(self) -> None:
        self._saved: list[Any] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Screen:
        for number in ENDING_SIGNALS:
            self._handlers[number] = signal.signal(number, _end)
        try:
            if sys.stdin.isatty():
                self._saved = termios.tcgetattr(sys.stdin.fileno())
                tty.setcbreak(sys.stdin.fileno())
            self._put(ENTER)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        found = shutil.get_terminal_size()
        return found.columns, found.lines

    def draw(self, text: str) -> None:
        """Replaces the picture. What does not fit below is left out; lines must not be wider than the screen."""
        lines = text.splitlines()[: self.size[1]]
        self._put(HOME + "\r\n".join(line + ERASE_REST_OF_LINE for line in lines) + ERASE_BELOW)

    def wait(self, timeout_s: float) -> str:
        """Waits for a key, and returns what was typed; empty when the time is up."""
        if self._saved is None:
            select.select([], [], [], timeout_s)
            return ""
        if not select.select([sys.stdin], [], [], timeout_s)[0]:
            return ""
        typed = os.read(sys.stdin.fileno(), MAX_KEY_BYTES)
        # The end of input is the end of the picture: nothing could ever be typed again.
        return typed.decode("utf-8", "replace") or "q"

    def _restore(self) -> None:
        try:
            self._put(LEAVE)
        except OSError:
            pass  # The terminal is gone.
        if self._saved is not None:
            try:
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._saved)
            except (OSError, termios.error):
                pass
            self._saved = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _put(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """As a shell reports an end by a signal."""
    raise SystemExit(128 + number)
