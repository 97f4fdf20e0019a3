"""Root's log: levels, both forms, and a stream that fails."""

from __future__ import annotations

import io
import json

from ottod.telemetry.log import MAX_MESSAGE_CHARS, Log


def test_text_and_levels() -> None:
    """Below the level nothing is written; an error carries its traceback."""
    out = io.StringIO()
    log = Log(level="warning", stream=out)
    log.info("quiet")
    log.warning("careful")
    log.error("broken", ValueError("why"))
    lines = out.getvalue().splitlines()
    assert "quiet" not in out.getvalue()
    assert "warning: careful" in lines[0] and "error: broken" in lines[1] and lines[-1] == "ValueError: why"


def test_json_is_one_object_a_line() -> None:
    """Whatever the message holds, a record is one line of JSON, and bounded."""
    out = io.StringIO()
    log = Log(form="json", stream=out)
    log.info('two\nlines and "quotes"')
    log.error("x" * 100_000, ValueError("why"))
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first["message"] == 'two\nlines and "quotes"' and first["level"] == "info"
    assert len(second["message"]) == MAX_MESSAGE_CHARS and "ValueError: why" in second["traceback"]


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_stream_that_fails_stops_nobody() -> None:
    """The daemon goes on without its log."""
    Log(stream=FullDisk()).info("lost")
