"""What a command writes to: data on stdout, messages on stderr, in the format and colours asked for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from ottoctl.exits import status_of_code
from ottoctl.streams import OutputError, put
from ottod.errors import OttoError

if TYPE_CHECKING:
    from ottoctl.client import Otto
    from ottoctl.outage import Outage
    from ottoctl.sync import SyncOtto

Format = Literal["text", "json", "jsonl"]
ColorChoice = Literal["auto", "always", "never"]


class Console:
    """One command's view of the terminal and of the global options."""

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        timeout_s: float = 10.0,
        output: Format | None = None,
        color: ColorChoice = "auto",
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._output = output
        self._color = color
        self.announce: Callable[[str], None] = self.message
        """Says a line for people where nothing else is in the way."""

    # ------------------------------------------------------------ formats

    @property
    def output(self) -> Format:
        return self._output or "text"

    @property
    def chosen_output(self) -> Format | None:
        """What the user asked for, None if nothing."""
        return self._output

    @property
    def is_tty(self) -> bool:
        return sys.stdout.isatty()

    @property
    def color(self) -> bool:
        """Colour on stdout."""
        return self._colored(sys.stdout.isatty())

    @property
    def color_err(self) -> bool:
        """Colour on stderr."""
        return self._colored(sys.stderr.isatty())

    @property
    def width(self) -> int:
        """Columns; 0, which cuts nothing, when stdout is not a terminal."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0

    def _colored(self, is_tty: bool) -> bool:
        if self._color != "auto":
            return self._color == "always"
        return is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    # ------------------------------------------------------------ writing

    def write(self, text: str) -> None:
        """Data, as it is."""
        put(sys.stdout, text)

    def write_bytes(self, content: bytes) -> None:
        """Data in no encoding."""
        try:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        put(sys.stdout, "", flush=True)

    def records(self, values: list[Any]) -> None:
        """Several structs: one JSON array, or one line each."""
        import msgspec

        plain = [msgspec.to_builtins(value) for value in values]
        if self.output == "jsonl":
            self.write("".join(encode_json(value) + "\n" for value in plain))
        else:
            self.write(encode_json(plain, indent=2) + "\n")

    def record(self, value: Any) -> None:
        """One struct."""
        import msgspec

        self.write(encode_json(msgspec.to_builtins(value), indent=0 if self.output == "jsonl" else 2) + "\n")

    def message(self, text: str) -> None:
        """A line for people, on stderr. If that cannot be written there is nobody to tell."""
        with suppress(OSError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def error(self, error: OttoError) -> int:
        """Says what is wrong and what would mend it; returns the exit status."""
        from ottoctl.rendering.ansi import one_line, paint

        color = self.color_err
        self.message(f"{paint('ottoctl: error:', 'bold red', color=color)} {one_line(error.message)}")
        if error.mend:
            self.message(f"  {paint('mend:', 'bold', color=color)} {one_line(error.mend)}")
        return status_of_code(error.code)

    def warning(self, warning: OttoError) -> None:
        """Says what is not as it seems, and what would mend it. The exit status stays as it is."""
        from ottoctl.rendering.ansi import one_line, paint

        color = self.color_err
        self.message(f"{paint('ottoctl: warning:', 'bold yellow', color=color)} {one_line(warning.message)}")
        if warning.mend:
            self.message(f"  {paint('mend:', 'bold', color=color)} {one_line(warning.mend)}")

    # ------------------------------------------------------------ the daemon

    def connect(self, *, follows: bool = False) -> SyncOtto:
        """The blocking client: what a short command needs, and the quickest to load.

        Of a command that `follows` something the user is told when the daemon goes, and when it is back.
        """
        from ottoctl.outage import unheard
        from ottoctl.sync import SyncOtto

        on_outage = self._outage if follows else unheard
        return SyncOtto.connect(self.endpoint, timeout_s=self.timeout_s, client="ottoctl", on_outage=on_outage)

    def connect_async(self) -> Otto:
        """The asynchronous client: for commands that do several things at a time, and follow something."""
        from ottoctl.client import Otto

        return Otto.connect(self.endpoint, timeout_s=self.timeout_s, client="ottoctl", on_outage=self._outage)

    def _outage(self, outage: Outage) -> None:
        self.announce(str(outage))


def encode_json(value: Any, *, indent: int = 0) -> str:
    """JSON text; indented for people, one line for programs."""
    import msgspec

    raw = msgspec.json.encode(value)
    return (msgspec.json.format(raw, indent=indent) if indent else raw).decode()
