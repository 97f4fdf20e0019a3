"""What checks look at, and what they find: those of `ottoctl doctor`, and of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from ottod.errors import ConfigError
from ottod.settings.paths import Paths

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. A `fail` means that something does not work; a `warn`, that something is missed."""

    check: str
    level: Level
    detail: str
    mend: str = ""


class Patient(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks look at."""

    env: Mapping[str, str]
    paths: Paths
    endpoint: str
    timeout_s: float
    cwd: Path


Check = Callable[[Patient], list[Finding]]


class FileCheck(NamedTuple):
    """What is wrong with an agent or a workflow; and if nothing is, what its file says in vain."""

    errors: list[ConfigError]
    warnings: list[ConfigError]


def said(found: Iterable[ConfigError]) -> list[dict[str, Any]]:
    """Mistakes of files, or warnings, for programs."""
    return [{"message": e.message, "file": e.file, "line": e.line, "column": e.column, "mend": e.mend} for e in found]
