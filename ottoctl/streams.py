"""Standard streams in whatever state the caller left them: closed, full, or in an encoding that lacks letters."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

from ottod.errors import OttoError

ESCAPES = "ottoctl.escapes"


class OutputError(OttoError):
    """What a command has to say cannot be written. A reader that went away is none: that is BrokenPipeError."""

    def __init__(self, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(f"cannot write to standard output: {reason}", code="output")


def prepare_streams() -> None:
    """Makes all three usable. What an encoding lacks is written as `\\u00e9`, which JSON understands as well."""
    codecs.register_error(ESCAPES, escape)
    for descriptor, name, flag in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, _reopened(descriptor, flag))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=ESCAPES)


def _reopened(descriptor: int, flag: int) -> TextIO:
    """A stream on a descriptor that was closed, so that no socket is ever taken for it.

    On standard output every write fails, as it should; what nobody reads on standard error is nobody's loss.
    """
    opened = os.open(os.devnull, flag)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8", errors="replace", closefd=False)


def escape(error: UnicodeError) -> tuple[str, int]:
    """What cannot be encoded as `\\uXXXX`, beyond the first plane as a pair."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)), error.end


def put(stream: TextIO, text: str, *, flush: bool = False) -> None:
    """Writes. Raises OutputError; BrokenPipeError when the reader went away."""
    try:
        stream.write(text)
        if flush:
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error) from error
