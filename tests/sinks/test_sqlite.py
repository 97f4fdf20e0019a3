"""A row and its content are there together, once, and nobody else's tables are touched."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from ottod.isolation.beneath import BeneathFiles
from ottod.protocol.sinks import Sink
from ottod.sinks.base import Parcel, Undelivered
from ottod.sinks.sqlite import SqliteFile
from tests.sinks.parcels import parcel


def deliver(root: Path, one: Parcel, path: str = "data/otto.db") -> str:
    files = BeneathFiles(str(root))
    try:
        return asyncio.run(SqliteFile(Sink(to="sqlite", path=path), files.place).deliver(one)).place
    finally:
        files.close()


def rows(file: str, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def test_the_same_parcel_again_changes_nothing(tmp_path: Path) -> None:
    one, two = parcel(b"\0binary"), parcel(b"\0binary", version=2)
    for each in (one, one, two, one):
        place = deliver(tmp_path, each)
    assert rows(place, "SELECT version, name, kind, workflow, step, agent FROM otto_artifacts ORDER BY version") == [
        (version, "design", "design", "fix", "build[1]/coder", "planner") for version in (1, 2)
    ]
    assert rows(place, "SELECT content FROM otto_contents") == [(b"\0binary",)]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["otto.db"], "no journal is left"


def test_a_transaction_of_another_is_waited_for_and_broken_files_are_final(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(Undelivered) as caught:
        deliver(tmp_path, parcel(), "broken.db")
    assert caught.value.is_final
    place = deliver(tmp_path, parcel())
    with contextlib.closing(sqlite3.connect(place)) as other:
        other.execute("UPDATE otto_meta SET value = '9'")
        other.commit()
    with pytest.raises(Undelivered, match="schema 9") as caught:
        deliver(tmp_path, parcel(b"new"))
    assert caught.value.is_final and len(rows(place, "SELECT 1 FROM otto_artifacts")) == 1


def test_no_path_leads_out(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    for path in ("link/otto.db", ".git/otto.db"):
        with pytest.raises(Undelivered):
            deliver(root, parcel(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["project"]
