"""Which sessions are listed: a table, and every list against the plain reading of what was asked."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core import listing
from ottod.core.listing import Choice, check_patterns, choose, wants_ended
from ottod.errors import RefusedError
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
    choice = Choice(wanted, parents)
    assert (choice.wants(RUNNING), choice.wants(FAILED)) == (running, failed)


def test_ended_sessions_are_looked_at_where_they_can_be_wanted() -> None:
    """With `all`, by their state, or by how they ended."""
    assert not wants_ended(ListSessions()) and not wants_ended(ListSessions(states=("running",), agents=("a",)))
    assert all(map(wants_ended, (ListSessions(all=True), ListSessions(states=("ended",)))))
    assert wants_ended(ListSessions(causes=("budget",)))


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
    assert Choice(ListSessions(agents=agents, names=names)).wants(info) == plain


@given(pattern=st.text("[]!-^*?a\\&|~z", max_size=20))
def test_every_text_is_a_pattern(pattern: str) -> None:
    """It is compiled in a thread that must not end."""
    Choice(ListSessions(agents=(pattern,))).wants(RUNNING)


@pytest.mark.parametrize("field", ["agents", "names", "parents"])
def test_patterns_have_bounds(field: str) -> None:
    """Ten of a field, of a hundred characters; what is beyond is refused with the figure."""
    check_patterns(ListSessions(**{field: ("[!a]" * 25,) * 10}))
    with pytest.raises(RefusedError, match=f"11 {field} to filter by, and at most 10 "):
        check_patterns(ListSessions(**{field: ("a",) * 11}))
    with pytest.raises(RefusedError, match="a filter of 101 characters "):
        check_patterns(ListSessions(**{field: ("a", "b" * 101)}))


def ended(n: int, **changed: Any) -> SessionInfo:
    fields = {"session": f"s-{n}", "agent": "a", "model": "m", "state": "ended", "created_at_ns": n, **changed}
    return SessionInfo(**fields)


def test_a_list_is_cut_where_more_may_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its limit, or because no more rows are looked at; no more are read than that takes."""
    monkeypatch.setattr(listing, "MAX_LOOKED_AT", 10)
    living = [RUNNING]
    rows = [ended(n, agent="rare" if n == 1 else "a") for n in range(20, 0, -1)]

    def listed(rows: list[SessionInfo], **asked: Any) -> tuple[list[str], bool, int]:
        left = iter(rows)
        found, is_cut = choose(ListSessions(all=True, **asked), living, left)
        return [info.session for info in found], is_cut, len(list(left))

    assert listed(rows, limit=2) == (["s-20", "s-19"], True, 17)
    assert listed(rows, limit=100, agents=("rare",)) == ([], True, 9)
    assert listed(rows[10:], limit=100, agents=("rare",)) == (["s-1"], False, 0)
    # A session that ended while the list was made is in it once, as it is now.
    both = choose(ListSessions(all=True), living, [ended(1, session=RUNNING.session)])
    assert [info.state for info in both[0]] == ["ended"]


def test_a_tree_is_what_is_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also below what has ended; rows of those that live say only where they belong."""
    living = [RUNNING, ended(9, state="idle", parent="s-8"), ended(7, state="idle", parent="s-1")]
    rows = [ended(8, parent="s-3"), ended(5, parent="s-3", state="idle")]
    found, is_cut = choose(ListSessions(all=True, tree="s-3"), living, rows, top="s-3")
    assert ([info.session for info in found], is_cut) == (["s-9", "s-8"], False)
    monkeypatch.setattr(listing, "MAX_LOOKED_AT", 1)
    assert choose(ListSessions(all=True, tree="s-3"), living, rows, top="s-3")[1]
