"""Root's log: one line a message, as text for people or JSON for machines, on stderr.

Not the standard library's logging: its handlers lock and may block, and root has one thread that must not. Lines are
short, rare, and go to a file or to the journal of the init system.

A record can say what it is about: `log.warning("no heartbeat for 20 s", session="s-7f3k", incarnation=2)`. These ids
are fields of their own in JSON and `name=value` at the end of a text line; `bind` gives a log that adds them by
itself. What came from outside cannot forge a line: whatever does not print is escaped.

    text     2026-11-20T18:00:00+0000 ottod[4711] warning: no heartbeat for 20 s  session=s-7f3k incarnation=2
    JSON     {"ts": 1795197600.1, "level": "warning", "pid": 4711, "message": …, "session": "s-7f3k", …}
    journal  either of them behind `<4>`, the priority that journald takes off again; text without time and pid,
             which the journal knows itself

Whether stderr is the journal: systemd names its device and inode in JOURNAL_STREAM (systemd.exec(5)); a service whose
stderr was sent elsewhere still has the variable, so both are compared with the descriptor.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Literal, TextIO, TypedDict, Unpack

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["text", "json"]
ORDER: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
PRIORITY: dict[Level, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""syslog(3)'s numbers."""
MAX_MESSAGE_CHARS = 4000
MAX_ID_CHARS = 200
MAX_TRACEBACK_CHARS = 16_000
"""Of a traceback; the end is kept, where the reason stands. journald takes lines of up to 48 KiB."""


class Ids(TypedDict, total=False):
    """What a record is about. All of them are optional."""

    session: str
    incarnation: int
    worker: int
    """A worker's pid, while no session has it."""
    generation: int
    """The zygote's."""
    client: str
    request: str | int
    trace: str
    """Of OpenTelemetry; added where traces are on."""


class Sink:
    """Where a log and everything bound to it writes, and from which level on."""

    def __init__(self, *, level: Level, form: Form, stream: TextIO, journal: bool) -> None:
        self.level = level
        self.form = form
        self.stream = stream
        self.journal = journal
        self.redact: Callable[[str], str] = lambda text: text
        self.trace_of: Callable[[str], str] = lambda session: ""


class Log:
    """Writes what is at or above its level."""

    def __init__(
        self, *, level: Level = "info", form: Form = "text", stream: TextIO | None = None, journal: bool = False
    ) -> None:
        self._sink = Sink(
            level=level, form=form, stream=stream if stream is not None else sys.stderr, journal=journal
        )
        self._bound: Ids = {}

    @property
    def level(self) -> Level:
        """The least that is written. Setting it holds for all logs that were bound, too."""
        return self._sink.level

    @level.setter
    def level(self, level: Level) -> None:
        self._sink.level = level

    @property
    def redact(self) -> Callable[[str], str]:
        """What every message and traceback goes through. Setting it holds for all logs that were bound, too."""
        return self._sink.redact

    @redact.setter
    def redact(self, redact: Callable[[str], str]) -> None:
        self._sink.redact = redact

    @property
    def trace_of(self) -> Callable[[str], str]:
        """The trace of a session, which is added to records about one; empty for none. Setting it as `redact`."""
        return self._sink.trace_of

    @trace_of.setter
    def trace_of(self, trace_of: Callable[[str], str]) -> None:
        self._sink.trace_of = trace_of

    def bind(self, **ids: Unpack[Ids]) -> Log:
        """The same log, for records that are all about these."""
        bound = Log.__new__(Log)
        bound._sink = self._sink
        bound._bound = {**self._bound, **ids}
        return bound

    def debug(self, message: str, **ids: Unpack[Ids]) -> None:
        self._write("debug", message, ids)

    def info(self, message: str, **ids: Unpack[Ids]) -> None:
        self._write("info", message, ids)

    def warning(self, message: str, **ids: Unpack[Ids]) -> None:
        self._write("warning", message, ids)

    def error(self, message: str, error: BaseException | None = None, **ids: Unpack[Ids]) -> None:
        """An error; an exception's traceback follows as part of the same record."""
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        self._write("error", message, ids, trace)

    def _write(self, level: Level, message: str, ids: Ids, trace: str = "") -> None:
        sink = self._sink
        if ORDER[level] < ORDER[sink.level]:
            return
        message, trace = sink.redact(message)[:MAX_MESSAGE_CHARS], sink.redact(trace)[-MAX_TRACEBACK_CHARS:]
        about: Ids = {**self._bound, **ids}
        if "session" in about and (spans := sink.trace_of(about["session"])):
            about["trace"] = spans
        if sink.form == "json":
            lines = [as_json(level, message, about, trace)]
        else:
            origin = "" if sink.journal else f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} ottod[{os.getpid()}] "
            lines = [origin + as_text(level, message, about)]
            lines += [printable(line) for line in trace.splitlines()]
        prefix = f"<{PRIORITY[level]}>" if sink.journal else ""
        try:
            sink.stream.write("".join(f"{prefix}{line}\n" for line in lines))
            sink.stream.flush()
        except (OSError, ValueError):
            pass  # A full disk, a closed pipe or a closed stream must not stop the daemon.


def as_text(level: Level, message: str, ids: Ids) -> str:
    """A record as one line for people."""
    named = " ".join(f"{name}={_shown(value)}" for name, value in ids.items())
    mark = "" if level == "info" else f"{level}: "
    return f"{mark}{printable(message)}" + (f"  {named}" if named else "")


def as_json(level: Level, message: str, ids: Ids, trace: str) -> str:
    """A record as one line of JSON; an id cannot take the place of a field of the record."""
    record: dict[str, object] = {"ts": time.time(), "level": level, "pid": os.getpid(), "message": message}
    record |= {name: _bounded(value) for name, value in ids.items() if name not in record}
    if trace:
        record["traceback"] = trace
    return json.dumps(record, ensure_ascii=False)


def printable(text: str) -> str:
    """The text with everything escaped that could break the line or hide in it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_journal(environ: Mapping[str, str], fd: int = 2) -> bool:
    """Whether the descriptor (stderr) leads to the journal."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def _bounded(value: object) -> object:
    return value[:MAX_ID_CHARS] if isinstance(value, str) else value


def _shown(value: object) -> str:
    text = printable(str(_bounded(value)))
    if text and " " not in text and '"' not in text:
        return text
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'
