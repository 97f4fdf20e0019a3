"""What a check of `ottoctl doctor` looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

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
