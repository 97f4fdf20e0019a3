"""Definitions by digest: as many as sessions refer to, and no more."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.storage.definitions import (
    DefinitionRow,
    forget_uses,
    keep_definitions,
    select_body,
    select_definitions,
    select_newest_user,
)
from ottod.storage.schema import MIGRATIONS


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = database()
    yield made
    made.close()


def database() -> sqlite3.Connection:
    made = sqlite3.connect(":memory:", isolation_level=None)
    for migration in MIGRATIONS:
        made.executescript(migration)
    return made


def row(digest: str, name: str = "coder", body: bytes = b"spec") -> DefinitionRow:
    return DefinitionRow(kind="agent", name=name, digest=digest, source="/a.yml", body=body)


def test_versions_are_found_by_the_beginning_of_their_digest(connection: sqlite3.Connection) -> None:
    keep_definitions(connection, "s-1", [row("aa11", body=b"old")], 1)
    keep_definitions(connection, "s-2", [row("aa22")], 2)
    keep_definitions(connection, "s-3", [row("bb", "other")], 3)
    assert [d.digest for d in select_definitions(connection, "agent", "coder", "aa", 9)] == ["aa22", "aa11"]
    assert [d.digest for d in select_definitions(connection, "agent", "coder", "aa1", 9)] == ["aa11"]
    assert [d.name for d in select_definitions(connection, "agent", "", "", 9)] == ["other", "coder", "coder"]
    assert not select_definitions(connection, "workflow", "coder", "", 9)
    assert select_body(connection, "agent", "aa11") == b"old" and select_body(connection, "agent", "aa") == b""


def test_the_first_word_on_a_digest_stands(connection: sqlite3.Connection) -> None:
    """A step's row says whose definition it runs, not what it says."""
    keep_definitions(connection, "s-1", [row("aa", body=b"whole")], 1)
    keep_definitions(connection, "s-2", [row("aa", body=b""), row("cc", body=b"")], 2)
    (found,) = select_definitions(connection, "agent", "coder", "", 9)
    assert (found.sessions, found.first_at_ns) == (2, 1)
    assert select_body(connection, "agent", "aa") == b"whole"
    assert select_newest_user(connection, "agent", "coder", "aa") == ""


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.lists(st.sampled_from("abcd"), max_size=3)), max_size=30)
)
def test_they_go_with_the_last_session(life: list[tuple[bool, int, list[str]]]) -> None:
    """Against sets: what is kept is what the sessions on record refer to."""
    connection, uses = database(), defaultdict[str, set[str]](set)
    for begins, number, digests in life:
        session = f"s-{number}"
        if begins:
            keep_definitions(connection, session, [row(digest) for digest in digests], 1)
            uses[session].update(digests)
        else:
            forget_uses(connection, session)
            uses.pop(session, None)
        kept = {d.digest: d.sessions for d in select_definitions(connection, "agent", "coder", "", 99)}
        wanted = {digest for known in uses.values() for digest in known}
        assert kept == {digest: sum(digest in known for known in uses.values()) for digest in wanted}
    connection.close()
