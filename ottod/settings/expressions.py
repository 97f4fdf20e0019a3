"""Regular expressions that files of a project bring along, matched in time that grows with the text and no faster.

Python's own can take for ever over a short text, and hold the whole process meanwhile. Source: RE2, whose syntax has
no look-around and no references back (https://github.com/google/re2/wiki/Syntax).
"""

from __future__ import annotations

from functools import lru_cache

MAX_EXPRESSION_CHARS = 4096


class Expression:
    """One of them. Raises ValueError, with what is wrong with it."""

    def __init__(self, text: str) -> None:
        # Most processes never need it: it is not loaded with this module.
        import re2

        if len(text) > MAX_EXPRESSION_CHARS:
            raise ValueError(f"it has more than {MAX_EXPRESSION_CHARS} characters")
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(text, options=options)
        except re2.error as error:
            why = error.args[0] if error.args else ""
            raise ValueError(why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)) from error

    def is_found(self, text: str) -> bool:
        """Whether it is found anywhere in a text."""
        try:
            return self._compiled.search(text) is not None
        except UnicodeEncodeError:
            return self._compiled.search(text.encode("utf-8", "replace").decode()) is not None


@lru_cache(maxsize=256)
def expression(text: str) -> Expression:
    """The same one each time. As `Expression`."""
    return Expression(text)
