"""Paths into JSON-like values: `servers[0].ports["http"]`, `[-1]` for the last element. Pure."""

from __future__ import annotations

import difflib
import re
from typing import Any

from ottod.errors import ToolError

Step = str | int
_STEP = re.compile(
    r"""
    (?P<dot>\.)?(?P<name>[^.\[\]"']+)          # name, after a dot except at the beginning
    | \[(?P<index>-?\d{1,9})\]                 # [0]
    | \[(?P<quote>["'])(?P<key>.*?)(?P=quote)\]  # ["any key"]
    """,
    re.VERBOSE | re.DOTALL,
)


def parse_path(text: str) -> tuple[Step, ...]:
    """The steps of a path; none for the empty one. Raises ToolError."""
    steps: list[Step] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        is_dotted = match is not None and match["dot"] is not None
        if match is None or (match["name"] is not None and is_dotted != bool(steps)):
            raise ToolError(
                f'bad path at {text[at:]!r}; paths look like a.b[0] or a["key with dots"]', code="bad_path"
            )
        if match["name"] is not None:
            steps.append(match["name"])
        elif match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            steps.append(match["key"])
        at = match.end()
    return tuple(steps)


def format_path(steps: tuple[Step, ...]) -> str:
    """The path that `parse_path` takes apart into these steps."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step and not re.search(r"[.\[\]\"']", step):
            text += f".{step}" if text else step
        else:
            text += f"['{step}']" if '"' in step else f'["{step}"]'
    return text or "(the whole)"


def get(value: Any, steps: tuple[Step, ...]) -> Any:
    """What is at the path. Raises ToolError that says how far it led and what is there."""
    for count, step in enumerate(steps):
        value = _descend(value, step, steps[:count])
    return value


def put(value: Any, steps: tuple[Step, ...], new: Any) -> Any:
    """The value with `new` at the path; missing mappings on the way are made, `[n]` appends at the end of a list."""
    if not steps:
        return new
    step, rest = steps[0], steps[1:]
    if isinstance(step, int):
        if not isinstance(value, list):
            raise ToolError(f"[{step}] needs a list, there is {_kind(value)}", code="bad_path")
        if step == len(value):
            return [*value, put({}, rest, new)]
        at = range(len(value))[step] if -len(value) <= step < len(value) else None
        if at is None:
            raise ToolError(f"[{step}] is out of range; the list has {len(value)} elements", code="not_found")
        return [*value[:at], put(value[at], rest, new), *value[at + 1 :]]
    if not isinstance(value, dict):
        raise ToolError(f"{step} needs a mapping, there is {_kind(value)}", code="bad_path")
    return {**value, step: put(value.get(step, {}), rest, new)}


def _descend(value: Any, step: Step, before: tuple[Step, ...]) -> Any:
    where = format_path(before)
    if isinstance(step, int):
        if not isinstance(value, list):
            raise ToolError(f"{where} is {_kind(value)}, not a list", code="not_found")
        if not -len(value) <= step < len(value):
            raise ToolError(f"{where} has {len(value)} elements, no [{step}]", code="not_found")
        return value[step]
    if not isinstance(value, dict):
        raise ToolError(f"{where} is {_kind(value)}, not a mapping", code="not_found")
    if step in value:
        return value[step]
    keys = [str(key) for key in value]
    nearest = difflib.get_close_matches(step, keys, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"its keys: {', '.join(keys[:20])}"
    raise ToolError(f"{where} has no key {step!r}; {hint}", code="not_found")


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else f"a {type(value).__name__}"
