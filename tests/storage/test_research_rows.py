"""Kept results: a bound that the least lately used pay for, and each agent's can be forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottod.protocol.results import ResearchEntry
from ottod.storage import research_rows as rows
from ottod.storage.schema import open_database_file


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    file = open_database_file(tmp_path / "otto.db")
    yield file.connection
    file.close()


def entry(key: str, at_ns: int, agent: str = "a") -> ResearchEntry:
    return ResearchEntry(key=key, agent=agent, cwd="/", question=f"{key}?", session="s-0000000000", at_ns=at_ns)


def test_what_is_kept_is_given_again_and_counted(connection: sqlite3.Connection) -> None:
    assert rows.recall(connection, "k", now_ns=5) is None
    rows.keep(connection, entry("k", 1), "found")
    assert rows.recall(connection, "k", now_ns=5) == ("found", "s-0000000000", 1)
    (found,) = rows.listed(connection, "", 10)
    assert (found.hits, found.used_ns, found.result_chars, found.question) == (1, 5, 5, "k?")
    rows.keep(connection, entry("k", 7), "found anew")
    assert rows.recall(connection, "k", now_ns=8) == ("found anew", "s-0000000000", 7)


def test_the_least_lately_used_go_first(connection: sqlite3.Connection) -> None:
    for n in range(3):
        rows.keep(connection, entry(f"k{n}", n), "x", most=3)
    rows.recall(connection, "k0", now_ns=10)
    rows.keep(connection, entry("k3", 11), "x", most=3)
    assert {e.key for e in rows.listed(connection, "", 10)} == {"k0", "k2", "k3"}


def test_of_one_agent_or_all_is_forgotten(connection: sqlite3.Connection) -> None:
    for n, agent in enumerate("aab"):
        rows.keep(connection, entry(f"k{n}", n, agent), "x")
    assert [e.key for e in rows.listed(connection, "a", 10)] == ["k1", "k0"]
    assert rows.forget(connection, "a") == 2 and rows.forget(connection, "") == 1
    assert rows.listed(connection, "", 10) == []
