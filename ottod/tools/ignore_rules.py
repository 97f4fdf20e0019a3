"""What a .gitignore, or one pattern in its syntax, says of paths. In linear time: a repository may be a stranger's.

Source of the syntax: gitignore(5), as pathspec translates it.
"""

from __future__ import annotations

import re

import msgspec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from ottod.settings.expressions import MAX_EXPRESSION_CHARS, Expression

MAX_LINES = 5000
"""Of one file. Each of them is looked at for each path."""


class _Rule(msgspec.Struct, frozen=True):
    """One line."""

    is_named: bool
    """Whether it names paths or takes them back."""
    is_for_dirs: bool
    expression: Expression

    def is_about(self, name: str, *, is_dir: bool) -> bool:
        return (is_dir or not self.is_for_dirs) and self.expression.is_found(name)


class IgnoreRules:
    """The rules of one file, which later ones of it override."""

    def __init__(self, lines: list[str]) -> None:
        self._rules = [rule for line in lines[:MAX_LINES] if (rule := _rule(line)) is not None]
        self._rules.reverse()

    def verdict(self, path: str) -> bool | None:
        """Whether they name the path, which ends in a slash for a directory; None if they say nothing of it.

        What lies in a directory that is named is not named by that: nobody looks there.
        """
        name = path.removesuffix("/")
        return next((rule.is_named for rule in self._rules if rule.is_about(name, is_dir=name != path)), None)

    def covers(self, path: str) -> bool:
        """Whether they name the path, or a directory that it lies in."""
        ends = [i + 1 for i, letter in enumerate(path[:-1]) if letter == "/"]
        return any(self.verdict(path[:end]) for end in (*ends, len(path)))

    @property
    def is_empty(self) -> bool:
        return not self._rules


def _rule(line: str) -> _Rule | None:
    """What a line says; None for one that says nothing or cannot be read."""
    if len(line) > MAX_EXPRESSION_CHARS:
        return None  # No path is so long.
    text = line if line.endswith("\\ ") else line.rstrip()
    try:
        pattern = GitIgnoreSpecPattern(text.removesuffix("/"))
        if pattern.include is None or pattern.regex is None:
            return None
        expression = pattern.regex.pattern
        # What lies below is found as well by an expression that may end before a slash.
        whole = expression + "$" if expression.endswith("$)") else expression
        return _Rule(is_named=pattern.include, is_for_dirs=text.endswith("/"), expression=Expression(whole))
    except (ValueError, re.error):
        return None  # git, too, goes on without a pattern that it cannot read.
