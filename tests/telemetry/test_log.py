"""Root's log: levels, both forms, and a stream that fails."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

from ottod.telemetry.log import MAX_ID_CHARS, MAX_MESSAGE_CHARS, MAX_TRACEBACK_CHARS, Log, is_journal


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


def test_a_closed_stream_stops_nobody() -> None:
    """Nor does a stream that somebody closed."""
    out = io.StringIO()
    out.close()
    Log(stream=out).info("lost")


def test_ids_are_fields() -> None:
    """What a record is about are fields of their own, given with the record or bound before."""
    out = io.StringIO()
    log = Log(form="json", stream=out).bind(session="s-7f3k", incarnation=2)
    log.warning("silent", client="c-1")
    log.bind(incarnation=3).error("dead", ValueError("why"), request=7)
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["session"], first["incarnation"], first["client"]) == ("s-7f3k", 2, "c-1")
    assert (second["session"], second["incarnation"], second["request"]) == ("s-7f3k", 3, 7)
    assert second["message"] == "dead" and "ValueError: why" in second["traceback"]


def test_ids_at_the_end_of_a_text_line() -> None:
    """In text they follow the message; a value with a space is quoted, so that the line can be taken apart."""
    out = io.StringIO()
    Log(stream=out).bind(session="s-7f3k").warning("silent", client="two words", request="")
    assert out.getvalue().rstrip().endswith('warning: silent  session=s-7f3k client="two words" request=""')


def test_nothing_from_outside_forges_a_line() -> None:
    """Line breaks, escapes and what turns the reading direction are shown, not obeyed: in messages and in ids."""
    out = io.StringIO()
    Log(stream=out).warning("a\nb\x1b[2J\u202e\udc80", session="s-1\nerror: forged")
    assert out.getvalue().count("\n") == 1 and "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue()
    assert "a\\nb\\x1b[2J\\u202e\\udc80" in out.getvalue() and "s-1\\nerror: forged" in out.getvalue()


def test_an_id_cannot_replace_what_the_log_knows() -> None:
    """A record's own fields win, and ids are bounded."""
    out = io.StringIO()
    ids = {"pid": 1, "level": "info", "session": "x" * 1000}
    Log(form="json", stream=out).error("real", **ids)  # type: ignore[arg-type]
    record = json.loads(out.getvalue())
    assert record["pid"] == os.getpid() and record["level"] == "error" and len(record["session"]) == MAX_ID_CHARS


def test_the_journal_gets_priorities() -> None:
    """Every line for the journal begins with its priority; the journal knows time and pid, text leaves them out."""
    text, machine = io.StringIO(), io.StringIO()
    Log(stream=text, journal=True, level="debug").debug("d")
    Log(stream=text, journal=True).info("i", session="s-1")
    Log(stream=text, journal=True).error("e", ValueError("why"))
    Log(stream=machine, form="json", journal=True).warning("w")
    lines = text.getvalue().splitlines()
    assert lines[:2] == ["<7>debug: d", "<6>i  session=s-1"] and lines[2] == "<3>error: e"
    assert all(line.startswith("<3>") for line in lines[2:]) and lines[-1] == "<3>ValueError: why"
    assert machine.getvalue().startswith("<4>{") and json.loads(machine.getvalue()[3:])["message"] == "w"


def test_a_long_traceback_keeps_its_end() -> None:
    """The reason stands at the end, and a line has a size."""
    out = io.StringIO()
    Log(form="json", stream=out).error("e", ValueError("x" * 100_000 + "the reason"))
    trace = json.loads(out.getvalue())["traceback"]
    assert len(trace) == MAX_TRACEBACK_CHARS and trace.rstrip().endswith("the reason")


def test_whether_stderr_is_the_journal(tmp_path: Path) -> None:
    """Only if the descriptor is the very file that the variable names; nonsense means no."""
    with (tmp_path / "stream").open("w") as stream, (tmp_path / "other").open("w") as other:
        found = os.fstat(stream.fileno())
        named = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(named, stream.fileno())
        assert not is_journal(named, other.fileno())
        for wrong in ("", ":", "a:b", f"{found.st_dev}", f"{found.st_dev}:{found.st_ino}:1"):
            assert not is_journal({"JOURNAL_STREAM": wrong}, stream.fileno())
    assert not is_journal(named, 10**6)


def test_a_level_holds_for_what_was_bound() -> None:
    """A level that a reload changes holds for all logs that were bound from the same one."""
    out = io.StringIO()
    log = Log(stream=out)
    bound = log.bind(session="s-1")
    log.level = "error"
    bound.warning("quiet")
    assert out.getvalue() == "" and bound.level == "error"
