"""The demonstration's report: diff, tests, cost, and where everything is. Pure."""

from __future__ import annotations

import difflib
from pathlib import Path

from ottoctl.demo.witness import Testimony
from ottoctl.rendering import amounts
from ottoctl.rendering.ansi import paint
from ottoctl.results import RunResult
from ottod.protocol.results import DaemonStatus

LABEL_CHARS = 12


def report(
    *,
    before: dict[str, str],
    after: dict[str, str],
    tests: str,
    result: RunResult,
    second: Testimony,
    status: DaemonStatus,
    base: Path | None,
    color: bool,
) -> str:
    """The report as text."""
    usage = result.usage
    passed = " passed" in tests and " failed" not in tests
    lines = ["", _head("The change", color), *diff(before, after, color), ""]
    lines += [_head("The tests, run once more", color), paint(tests, "green" if passed else "red", color=color), ""]
    lines += [_head("What it cost", color)]
    lines += _table(
        [
            ("model", result.model.rpartition("/")[2]),
            ("model calls", str(usage.calls)),
            ("input", f"{usage.input_tokens:,} tokens"),
            ("cached", f"{usage.cache_read_tokens:,} tokens"),
            ("output", f"{usage.output_tokens:,} tokens"),
            ("price", amounts.cost(usage)),
            ("time", amounts.duration(result.duration_s)),
        ]
    )
    lines += ["", _head("A second client", color)]
    verdict = second.difference or f"received the same {second.events} events from the beginning"
    lines += [f"attached after event {second.attached_after} and {verdict}", ""]
    lines += [_head("Where it was recorded", color)]
    journal = result.info.journal
    lines += _table(
        [
            ("session", f"{result.session}, {result.info.last_seq} events"),
            ("journal", journal if base else "removed (--no-keep)"),
            ("events", f"{base}/state/ring.wal, offsets {result.info.first_offset} to {result.info.last_offset}")
            if base
            else ("events", f"offsets {result.info.first_offset} to {result.info.last_offset}"),
            ("daemon log", f"{base}/daemon.log" if base else "removed"),
            ("workers", f"zygote generation {status.zygote_generation}, {status.warm_workers} warm"),
        ]
    )
    if base:
        lines += ["", paint(f"the daemon ends now; remove what it leaves: rm -r {base}", "dim", color=color)]
    return "\n".join(lines) + "\n"


def diff(before: dict[str, str], after: dict[str, str], color: bool) -> list[str]:
    """A unified diff of all files, coloured as people expect."""
    out: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, "").splitlines(), after.get(name, "").splitlines()
        for line in difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm="", n=1):
            shade = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
            out.append(paint(line, shade, color=color) if shade else line)
    return out or ["nothing was changed"]


def _head(text: str, color: bool) -> str:
    return paint(text, "bold", color=color)


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return [f"  {name:<{LABEL_CHARS}} {value}" for name, value in rows]
