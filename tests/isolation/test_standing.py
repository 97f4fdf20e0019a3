"""Whether a call still stands: a deed is done, will never be done, or is known to be under way."""

from __future__ import annotations

import threading

import pytest

from ottod.errors import ToolError
from ottod.isolation.standing import Standing


def test_nothing_begins_once_a_call_is_given_up() -> None:
    """Neither a deed nor what prepares one; what was done before stays on the account."""
    standing = Standing()
    standing.check()
    assert standing.account() == "nothing"
    with standing.deed():
        pass
    standing.abandon()
    for begin in (standing.check, lambda: standing.deed().__enter__()):
        with pytest.raises(ToolError, match="given up"):
            begin()
    assert standing.account() == "done"


def test_a_deed_that_fails_is_none() -> None:
    """An error within it is passed on, and nothing has been done."""
    standing = Standing()
    with pytest.raises(OSError, match="no room"), standing.deed():
        raise OSError("no room")
    standing.abandon()
    assert standing.account() == "nothing"


def test_giving_up_does_not_wait_for_a_deed_under_way() -> None:
    """It is unknown until it comes back, and then told: in its own thread, or at once if there is none."""
    standing, told = Standing(), list[str]()
    begun, release = threading.Event(), threading.Event()

    def act() -> None:
        with standing.deed():
            begun.set()
            release.wait()

    thread = threading.Thread(target=act)
    thread.start()
    begun.wait()
    standing.abandon()
    standing.on_settled(lambda: told.append(standing.account()))
    assert standing.account() == "unknown" and not told
    release.set()
    thread.join()
    assert told == ["done"]
    standing.on_settled(lambda: told.append("at once"))
    assert told == ["done", "at once"]
