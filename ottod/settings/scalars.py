"""What an unquoted YAML scalar stands for: YAML 1.2's core rules, with underscores in numbers.

Only `true` and `false` are booleans (so `network: off` is a string), dates and times stay strings, and a leading
zero makes no octal number.
"""

from __future__ import annotations

import math
import re

MAX_INTEGER = 2**63 - 1

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z")
_BASED = re.compile(r"0(?:x[0-9a-fA-F][0-9a-fA-F_]*|o[0-7][0-7_]*|b[01][01_]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, bool | None] = {"": None, "~": None}
_WORDS |= dict.fromkeys(("null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)


def plain_scalar(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar stands for. Raises: OverflowError for numbers beyond 64 bits."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text) or _BASED.match(text):
        if len(text) > 80:
            raise OverflowError(text)
        number = int(text.replace("_", ""), 10 if _INTEGER.match(text) else 0)
        if abs(number) > MAX_INTEGER:
            raise OverflowError(text)
        return number
    if _FLOAT.match(text):
        value = float(text.replace("_", ""))
        if not math.isfinite(value):
            raise OverflowError(text)
        return value
    return text


def describe_value(value: object) -> str:
    """A value in an error message: its kind, and a scalar's text."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    return str(value)
