"""Tool calls in a few words: what was asked, what came of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from ottoctl.rendering.ansi import clip, one_line
from ottod.errors import UNDECODABLE

SPEAKING_ARGUMENTS = (
    "command",
    "path",
    "paths",
    "pattern",
    "query",
    "url",
    "file",
    "target",
    "name",
    "task",
    "title",
    "text",
)
"""The argument that says most about a call, in order of preference."""
ARGUMENT_WIDTH = 60
RESULT_WIDTH = 60
MAX_SHOWN_CLAIMS = 3

_CUT_ARGUMENT = re.compile(rf'"(?:{"|".join(SPEAKING_ARGUMENTS)})"\s*:\s*"((?:[^"\\]|\\.)*)')
_TEST_COUNTS = re.compile(r"\b\d+ (?:passed|failed|errors?|skipped|xfailed|xpassed|deselected)\b")


def argument_summary(arguments: str) -> str:
    """One line from a call's JSON arguments, which may be cut or malformed."""
    try:
        parsed: Any = msgspec.json.decode(arguments)
    except UNDECODABLE:
        # Cut in the middle, as a rule: what is there still says something.
        found = _CUT_ARGUMENT.search(arguments)
        return clip(one_line(found[1] if found else arguments), ARGUMENT_WIDTH)
    if not isinstance(parsed, dict):
        return clip(one_line(arguments), ARGUMENT_WIDTH)
    named = [parsed[name] for name in SPEAKING_ARGUMENTS if parsed.get(name)]
    values = named[:1] or [value for value in parsed.values() if value not in (None, "", [], {})][:1]
    text = " ".join(_plain(value) for value in values)
    if "pattern" in parsed and parsed.get("path"):
        text = f"{_plain(parsed['pattern'])} {_plain(parsed['path'])}"
    return clip(one_line(text), ARGUMENT_WIDTH)


def result_summary(output: str, exit_status: int | None, *, truncated: bool = False) -> str:
    """One line from a call's output: test counts if there are any, a single line itself, else how many."""
    counts = _TEST_COUNTS.findall(output)
    if counts:
        # The last line that has counts is the runner's summary.
        last = next(line for line in reversed(output.splitlines()) if _TEST_COUNTS.search(line))
        return ", ".join(_TEST_COUNTS.findall(last))
    lines = [line for line in output.splitlines() if line.strip()]
    status = f"exit {exit_status}" if exit_status else ""
    if not lines:
        return status
    text = clip(one_line(lines[0]), RESULT_WIDTH) if len(lines) == 1 else f"{len(lines)}{'+' * truncated} lines"
    return f"{status}, {text}" if status else text


def _plain(value: Any) -> str:
    """A value as people write it, without what is nested deeper than a list of things with facts."""
    if isinstance(value, list):
        between = ", " if any(isinstance(item, dict) for item in value) else " "
        return between.join(filter(None, map(_fact, value)))
    return _fact(value)


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        # What has a title, as a node of the decision graph, is known by it; of others all plain facts are told.
        facts = [value.get("kind"), value["title"]] if value.get("title") else value.values()
        return " ".join(_word(fact) for fact in facts if isinstance(fact, str | int | float))
    return _word(value)


def _word(value: Any) -> str:
    if isinstance(value, list | dict):
        return "…"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def call_and_claims(tool: str, arguments: str, claims: Sequence[str]) -> str:
    """`shell git push`, and in brackets what of it needs permission, where that is not the same."""
    summary = argument_summary(arguments)
    what = f"{one_line(tool)} {summary}".rstrip()
    asked = [one_line(claim) for claim in claims if one_line(claim.partition(" ")[2]) != summary]
    asked = [claim for claim in asked if " with arguments " not in claim]
    shown = ", ".join(asked[:MAX_SHOWN_CLAIMS]) + (", …" if len(asked) > MAX_SHOWN_CLAIMS else "")
    return f"{what} [{shown}]" if shown else what
