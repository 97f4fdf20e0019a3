"""Which sessions run which version of an agent or a workflow, and which versions there are: tables and records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from ottoctl.rendering.ansi import one_line
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.definitions import SHOWN_DIGEST_CHARS, DefinitionKind, KeptDefinition
from ottod.protocol.results import SessionInfo


def running_records(
    kind: DefinitionKind, name: str, current: str, sessions: Iterable[SessionInfo]
) -> list[dict[str, Any]]:
    """The live sessions of a name, and which definition each was started with.

    `is_current`: the one that a session would get now, whose digest is `current`; a file that is wrong, or gone, is
    nobody's.
    """
    return [
        {
            "session": info.session,
            "state": info.state,
            "cwd": info.cwd,
            f"{kind}_source": info.agent_source,
            f"{kind}_digest": info.agent_digest,
            "is_current": bool(current) and info.agent_digest == current,
        }
        for info in sessions
        if info.agent == name and (info.kind == "workflow") == (kind == "workflow")
    ]


def running_table(kind: DefinitionKind, records: Sequence[dict[str, Any]], *, width: int, color: bool) -> str:
    """A line for each session."""
    rows = [
        [
            Cell(record["session"], "bold"),
            record["state"],
            record[f"{kind}_digest"][:SHOWN_DIGEST_CHARS] or "-",
            "now" if record["is_current"] else Cell("another", "yellow"),
            one_line(record[f"{kind}_source"]),
        ]
        for record in records
    ]
    return render_table(("SESSION", "STATE", "DIGEST", "AS", "FROM"), rows, width=width, color=color)


def version_records(versions: Iterable[KeptDefinition], current: str) -> list[dict[str, Any]]:
    """The versions that are kept, newest first; `is_current` as above."""
    return [{**msgspec.to_builtins(v), "is_current": bool(current) and v.digest == current} for v in versions]


def versions_table(versions: Sequence[KeptDefinition], current: str, *, width: int, color: bool) -> str:
    """A line for each version."""
    rows = [
        [
            Cell(version.digest[:SHOWN_DIGEST_CHARS], "bold"),
            "now" if version.digest == current else "-",
            datetime.fromtimestamp(version.first_at_ns / 1e9, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M"),
            str(version.live),
            str(version.sessions),
            one_line(version.source) or "-",
        ]
        for version in versions
    ]
    header = ("DIGEST", "AS", "FIRST RUN", "LIVE", "SESSIONS", "FROM")
    return render_table(header, rows, width=width, color=color, right=frozenset({3, 4}))
