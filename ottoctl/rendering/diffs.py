"""A unified diff for the eyes of who is asked whether it may be made."""

from __future__ import annotations

from ottoctl.rendering.ansi import paint, printable

STYLES = (("+++", "bold"), ("---", "bold"), ("@@", "cyan"), ("+", "green"), ("-", "red"), ("…", "yellow"))


def diff_text(diff: str, *, color: bool) -> str:
    """The diff, a line a line, each in the style of what it says."""
    return "".join(f"{paint(line, _style(line), color=color)}\n" for line in printable(diff).splitlines())


def _style(line: str) -> str:
    return next((style for beginning, style in STYLES if line.startswith(beginning)), "")
