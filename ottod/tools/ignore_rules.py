"""What a .gitignore, or one pattern in its syntax, says of paths. In linear time: a repository may be a stranger's.

Source of the syntax: gitignore(5), as pathspec translates it.
"""

from __future__ import annotations

import re

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from ottod.settings.expressions import MAX_EXPRESSION_CHARS, Expression

MAX_LINES = 5000
"""Of one file. Each of them is looked at for each path."""


class IgnoreRules:
    """The rules of one file, which later ones of it override."""

    def __init__(self, lines: list[str]) -> None:
        self._rules = [rule for line in lines[:MAX_LINES] if (rule := _rule(line)) is not None]
        self._rules.reverse()

    def verdict(self, path: str) -> bool | None:
        """Whether they name the path, which ends in a slash for a directory; None if they say nothing of it."""
        return next((is_named for is_named, names in self._rules if names.is_found(path)), None)

    @property
    def is_empty(self) -> bool:
        return not self._rules


def _rule(line: str) -> tuple[bool, Expression] | None:
    """Whether a line names paths or takes them back, and which; None for one that says nothing or cannot be read."""
    if len(line) > MAX_EXPRESSION_CHARS:
        return None  # No path is so long.
    try:
        pattern = GitIgnoreSpecPattern(line)
        if pattern.include is None or pattern.regex is None:
            return None
        return pattern.include, Expression(pattern.regex.pattern)
    except (ValueError, re.error):
        return None  # git, too, goes on without a pattern that it cannot read.
