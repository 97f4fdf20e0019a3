"""`ps --filter`: from the command line to the request."""

from __future__ import annotations

import pytest

from ottoctl.filters import complete_filter, filtered
from ottod.errors import OttoError
from ottod.protocol.requests import ListSessions


def test_filters_become_the_request() -> None:
    """Keys repeat, values are split at commas, outcomes are told from states; what was there before stays."""
    given = ["state=running,failed", "agent=code*", "agent=tester", "parent=7f3k", "name=nightly"]
    assert filtered(ListSessions(all=True, limit=5), given, states=("idle",)) == ListSessions(
        all=True,
        limit=5,
        states=("idle", "running"),
        causes=("failed",),
        agents=("code*", "tester"),
        parents=("7f3k",),
        names=("nightly",),
    )


@pytest.mark.parametrize(
    ("given", "message", "mend"),
    [
        ("stat=running", "no such filter: stat", "one of state, agent, parent, name"),
        ("running", "not a filter: running", "KEY=VALUE"),
        ("agent=", "not a filter: agent=", "KEY=VALUE"),
        ("state=asleep", "no such state: asleep", "waiting_approval"),
    ],
)
def test_what_is_no_filter_is_refused_with_the_list(given: str, message: str, mend: str) -> None:
    """Nothing is ignored."""
    with pytest.raises(OttoError) as caught:
        filtered(ListSessions(), [given])
    assert (caught.value.code, caught.value.message) == ("usage", message) and mend in caught.value.mend


def test_completion() -> None:
    """Keys first, then what a state can be."""
    assert complete_filter("") == ["state=", "agent=", "parent=", "name="]
    assert complete_filter("state=ru") == ["state=running"] and "state=failed" in complete_filter("state=")
