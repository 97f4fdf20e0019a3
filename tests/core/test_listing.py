"""Which sessions are listed: a table, and every list against the plain reading of what was asked."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.listing import is_wanted, narrows, wants_ended
from ottod.protocol.cause import Cause
from ottod.protocol.requests import ListSessions
from ottod.protocol.results import SessionInfo

RUNNING = SessionInfo(session="s-1", agent="coder", model="m", state="running", name="coder#2", parent="s-0")
FAILED = SessionInfo(
    session="s-2", agent="tester", model="m", state="ended", cause=Cause(kind="failed"), name="nightly"
)


@pytest.mark.parametrize(
    ("asked", "parents", "running", "failed"),
    [
        ({}, (), True, True),
        ({"states": ("running", "idle")}, (), True, False),
        ({"causes": ("failed",)}, (), False, True),
        ({"states": ("running",), "causes": ("failed",)}, (), True, True),
        ({"causes": ("completed",)}, (), False, False),
        ({"agents": ("code*",)}, (), True, False),
        ({"agents": ("coder", "tester")}, (), True, True),
        ({"names": ("nightly",)}, (), False, True),
        ({"names": ("night",)}, (), False, False),
        ({"names": ("coder#[0-9]",)}, (), True, False),
        ({}, ("s-0",), True, False),
        ({"agents": ("coder",), "states": ("ended",)}, (), False, False),
    ],
)
def test_what_fits(asked: dict[str, Any], parents: tuple[str, ...], running: bool, failed: bool) -> None:
    """Any value of one kind, and of every kind that was asked for."""
    wanted = ListSessions(**asked)
    assert (is_wanted(RUNNING, wanted, parents), is_wanted(FAILED, wanted, parents)) == (running, failed)


def test_ended_sessions_are_looked_at_where_they_can_be_wanted() -> None:
    """With `all`, by their state, or by how they ended; more of them where only some are wanted."""
    assert not wants_ended(ListSessions()) and not wants_ended(ListSessions(states=("running",), agents=("a",)))
    assert all(map(wants_ended, (ListSessions(all=True), ListSessions(states=("ended",)))))
    assert wants_ended(ListSessions(causes=("budget",))) and narrows(ListSessions(causes=("budget",)))
    assert not narrows(ListSessions(all=True, states=("ended",)))


WORDS = st.sampled_from(["", "coder", "code", "tester"])
PATTERNS = st.lists(st.sampled_from(["code*", "*er", "coder", "t?ster", "x"]), max_size=3).map(tuple)


@given(agent=WORDS, name=WORDS, agents=PATTERNS, names=PATTERNS)
def test_patterns_against_the_plain_reading(
    agent: str, name: str, agents: tuple[str, ...], names: tuple[str, ...]
) -> None:
    """For each kind: nothing was asked, or one of the patterns matches all of it."""
    info = SessionInfo(session="s-1", agent=agent, model="m", state="running", name=name)
    plain = all(
        not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)
        for text, patterns in ((agent, agents), (name, names))
    )
    assert is_wanted(info, ListSessions(agents=agents, names=names), ()) == plain
