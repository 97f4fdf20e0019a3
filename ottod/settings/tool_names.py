"""The names of tools that are not built in: `SOURCE__TOOL`, and the patterns by which an agent chooses among them.

Both vendors take letters, digits, `_` and `-`; the stricter one takes 64 of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

SEPARATOR = "__"
MAX_TOOL_NAME_CHARS = 64
MAX_SOURCE_NAME_CHARS = 32
"""Leaves as much again for the tool's own name."""
PROJECT: Final = "project"
USER: Final = "user"
"""The sources of Python tools; no MCP server may be called so."""
HASH_CHARS = 8

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


def source_of(name: str) -> str:
    """The source that a name or a pattern speaks of; empty for a built-in tool."""
    source, separator, rest = name.partition(SEPARATOR)
    return source if separator and source and rest else ""


def qualified(source: str, tool: str) -> str:
    """The name that a model calls a source's tool by. What does not fit is replaced, and marked by a hash."""
    room = MAX_TOOL_NAME_CHARS - len(source) - len(SEPARATOR)
    fit = _UNFIT.sub("_", tool)
    if fit != tool or not fit or len(fit) > room:
        digest = hashlib.sha256(tool.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_CHARS]
        fit = f"{fit[: room - HASH_CHARS - 1]}_{digest}"
    return f"{source}{SEPARATOR}{fit}"


def chosen(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of these names and patterns such as `github__*` means the tool."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)
