"""Root's log: one line a message, as text for people or JSON for machines, on stderr.

Not the standard library's logging: its handlers lock and may block, and root has one thread that must not. Lines are
short, rare, and go to a file or to the journal of the init system.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
ORDER: dict[Level, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MAX_MESSAGE_CHARS = 4000


class Log:
    """Writes what is at or above its level."""

    def __init__(
        self, *, level: Level = "info", form: Literal["text", "json"] = "text", stream: TextIO | None = None
    ) -> None:
        self._least = ORDER[level]
        self._form = form
        self._stream = stream if stream is not None else sys.stderr

    def debug(self, message: str) -> None:
        self._write("debug", message)

    def info(self, message: str) -> None:
        self._write("info", message)

    def warning(self, message: str) -> None:
        self._write("warning", message)

    def error(self, message: str, error: BaseException | None = None) -> None:
        """An error; an exception's traceback follows as part of the same record."""
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        self._write("error", message, trace)

    def _write(self, level: Level, message: str, trace: str = "") -> None:
        if ORDER[level] < self._least:
            return
        message = message[:MAX_MESSAGE_CHARS]
        if self._form == "json":
            record = {"ts": time.time(), "level": level, "pid": os.getpid(), "message": message}
            if trace:
                record["traceback"] = trace
            line = json.dumps(record, ensure_ascii=False)
        else:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            mark = "" if level == "info" else f"{level}: "
            line = f"{stamp} ottod[{os.getpid()}] {mark}{message}" + (f"\n{trace.rstrip()}" if trace else "")
        try:
            print(line, file=self._stream, flush=True)
        except OSError:
            pass  # A full disk or a closed pipe must not stop the daemon.
