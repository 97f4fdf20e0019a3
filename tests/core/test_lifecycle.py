"""The table of session states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.lifecycle import HAPPENINGS, LIVE, STATES, TRANSITIONS, IllegalTransition, next_state
from ottod.protocol.events import SessionState


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_every_pair_is_decided(state: SessionState, happening: str) -> None:
    """A pair is either in the table or raises; nothing is guessed."""
    if (state, happening) in TRANSITIONS:
        assert next_state(state, happening) in STATES  # type: ignore[arg-type]
    else:
        with pytest.raises(IllegalTransition):
            next_state(state, happening)  # type: ignore[arg-type]


def test_nothing_follows_the_end() -> None:
    """A session ends once: no transition leaves `ended`."""
    assert not [pair for pair in TRANSITIONS if pair[0] == "ended"]


@pytest.mark.parametrize("state", sorted(LIVE))
def test_stop_wins_everywhere(state: SessionState) -> None:
    """A stop is legal in every live state, and a stopping session goes nowhere but to its end."""
    assert next_state(state, "stop_requested") == "stopping"
    after_stop = {to for (source, _), to in TRANSITIONS.items() if source == "stopping"}
    assert after_stop == {"stopping", "ended"}


def test_every_state_is_reachable() -> None:
    """No state is dead: each can be reached from `starting`."""
    reached: set[SessionState] = {"starting"}
    while True:
        more = {to for (source, _), to in TRANSITIONS.items() if source in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(STATES)


@given(st.lists(st.sampled_from(HAPPENINGS), max_size=40))
def test_a_refused_happening_changes_nothing(happenings: list[str]) -> None:
    """Whatever comes in whatever order, a session is always in a known state, and once stopped never runs again."""
    state: SessionState = "starting"
    was_stopped = False
    for happening in happenings:
        try:
            state = next_state(state, happening)  # type: ignore[arg-type]
        except IllegalTransition:
            continue
        was_stopped = was_stopped or happening == "stop_requested"
        assert not (was_stopped and state not in ("stopping", "ended"))
