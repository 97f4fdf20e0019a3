"""Regular expressions that files of a project bring along, matched in time that grows with the text and no faster.

Python's own can take for ever over a short text, and hold the whole process meanwhile. Source: RE2, whose syntax has
no look-around and no references back (https://github.com/google/re2/wiki/Syntax).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

MAX_EXPRESSION_CHARS = 4096


def expression_mistake(expression: object) -> str:
    """Why it cannot be used; empty if it can."""
    import re2

    if not isinstance(expression, str):
        return "must be a regular expression"
    if len(expression) > MAX_EXPRESSION_CHARS:
        return f"must be a regular expression of at most {MAX_EXPRESSION_CHARS} characters"
    try:
        _compiled(expression)
    except (re2.error, UnicodeEncodeError) as error:
        return f"must be a regular expression as RE2 has them, without look-around and \\1 ({_told(error)})"
    return ""


def is_found(expression: str, text: str) -> bool:
    """Whether it is found anywhere in a text. It has no mistake."""
    try:
        return _compiled(expression).search(text) is not None
    except UnicodeEncodeError:
        return _compiled(expression).search(text.encode("utf-8", "replace").decode()) is not None


@lru_cache(maxsize=256)
def _compiled(expression: str) -> Any:
    # Most processes never need it: it is not loaded with this module.
    import re2

    options = re2.Options()
    options.log_errors = False
    return re2.compile(expression, options=options)


def _told(error: Exception) -> str:
    told = error.args[0] if error.args else ""
    return told.decode("utf-8", "replace") if isinstance(told, bytes) else "not valid text"
