"""The stop ladder: polite first, certain in the end, and never slower for being asked twice."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.stop_ladder import (
    KILL_INTERVAL_S,
    LAST_RESORT_S,
    TERM_GRACE_S,
    Exited,
    LadderAction,
    LadderEvent,
    OrderCancel,
    ReportRemaining,
    Rung,
    SignalKill,
    SignalTerm,
    StopLadder,
    StopOrdered,
    Ticked,
    WakeAt,
)

S = 1_000_000_000
ORDER: tuple[Rung, ...] = get_args(Rung)
EVENTS: tuple[LadderEvent, ...] = (StopOrdered(grace_s=5), StopOrdered(brutal=True), Ticked(), Exited())


def on_rung(rung: Rung) -> StopLadder:
    """A ladder that has climbed to this rung, at time 0, with its next rung far away."""
    ladder = StopLadder()
    if rung == "gone":
        ladder.step(Exited(), now_ns=0)
    elif rung == "cancelling":
        ladder.step(StopOrdered(grace_s=100), now_ns=0)
    elif rung == "terminating":
        ladder.step(StopOrdered(), now_ns=0)
    elif rung in ("killing", "stuck"):
        ladder.step(StopOrdered(brutal=True), now_ns=0)
        if rung == "stuck":
            ladder.step(Ticked(), now_ns=round(LAST_RESORT_S * S))
    assert ladder.rung == rung
    return ladder


def words(actions: list[LadderAction]) -> list[type]:
    return [type(action) for action in actions]


def test_the_whole_way_up() -> None:
    """Cancel, SIGTERM when the grace is over, SIGKILL two seconds later and again each second, then the report."""
    ladder = StopLadder()
    assert ladder.step(StopOrdered(grace_s=3), now_ns=S) == [OrderCancel(deadline_ns=4 * S), WakeAt(due_ns=4 * S)]
    assert ladder.step(Ticked(), now_ns=4 * S - 1) == [WakeAt(due_ns=4 * S)], "a timer that came early is armed again"
    assert ladder.step(Ticked(), now_ns=4 * S) == [SignalTerm(), WakeAt(due_ns=round((4 + TERM_GRACE_S) * S))]
    now_ns = round((4 + TERM_GRACE_S) * S)
    kills = 0
    while (actions := ladder.step(Ticked(), now_ns=now_ns)) != [ReportRemaining()]:
        assert words(actions) == [SignalKill, WakeAt]
        kills += 1
        now_ns += round(KILL_INTERVAL_S * S)
    assert kills == LAST_RESORT_S / KILL_INTERVAL_S
    assert (ladder.rung, ladder.due_ns) == ("stuck", None)


@pytest.mark.parametrize("rung", ORDER)
@pytest.mark.parametrize("event", EVENTS, ids=lambda e: f"{type(e).__name__}-{getattr(e, 'brutal', '')}")
def test_all_pairs(rung: Rung, event: LadderEvent) -> None:
    """Every event on every rung: what follows, and where the ladder stands then."""
    ladder = on_rung(rung)
    actions = words(ladder.step(event, now_ns=1))
    match event, rung:
        case Exited(), _:
            assert (actions, ladder.rung) == ([], "gone")
        case StopOrdered(brutal=True), "standing" | "cancelling" | "terminating":
            assert (actions, ladder.rung) == ([SignalKill, WakeAt], "killing")
        case StopOrdered(), "standing" | "cancelling":
            assert (actions, ladder.rung) == ([OrderCancel, WakeAt], "cancelling")
        case Ticked(), "cancelling" | "terminating" | "killing":
            assert (actions, ladder.rung) == ([WakeAt], rung), "it came early, and is armed again"
        case _:
            assert (actions, ladder.rung) == ([], rung)


@pytest.mark.parametrize(
    ("order", "due_s"),
    [
        (StopOrdered(grace_s=4), 5),
        (StopOrdered(grace_s=20), 11),
        (StopOrdered(grace_s=20, deadline_ns=7 * S), 7),
        (StopOrdered(grace_s=2, deadline_ns=7 * S), 3),
        (StopOrdered(grace_s=0), None),
        (StopOrdered(grace_s=20, deadline_ns=0), None),
    ],
)
def test_a_second_order_only_shortens(order: StopOrdered, due_s: int | None) -> None:
    """A grace of 10 s ordered at 1 s; what a second order makes of it in the same moment."""
    ladder = StopLadder()
    ladder.step(StopOrdered(grace_s=10), now_ns=S)
    ladder.step(order, now_ns=S)
    assert ladder.deadline_ns == (None if due_s is None else due_s * S)
    assert ladder.rung == ("terminating" if due_s is None else "cancelling")


def test_sigterm_is_sent_once() -> None:
    """Asked again while SIGTERM has its time, the ladder stays where it is, even for a grace of nothing."""
    ladder = on_rung("terminating")
    due_ns = ladder.due_ns
    assert ladder.step(StopOrdered(grace_s=0, deadline_ns=0), now_ns=S) == []
    assert (ladder.rung, ladder.due_ns) == ("terminating", due_ns)


def test_a_late_shell_skips_no_rung() -> None:
    """A wake-up an hour late sends SIGTERM and gives it its whole time."""
    ladder = StopLadder()
    ladder.step(StopOrdered(grace_s=1), now_ns=0)
    assert words(ladder.step(Ticked(), now_ns=3600 * S)) == [SignalTerm, WakeAt]
    assert ladder.due_ns == round((3600 + TERM_GRACE_S) * S)


events = st.one_of(
    st.builds(
        StopOrdered,
        grace_s=st.floats(0, 30),
        deadline_ns=st.none() | st.integers(0, 40 * S),
        brutal=st.booleans(),
    ),
    st.just(Ticked()),
)


@given(st.lists(st.tuples(events, st.integers(0, 3 * S)), max_size=60))
def test_it_only_climbs_and_always_arrives(steps: list[tuple[LadderEvent, int]]) -> None:
    """Whatever is ordered when: no rung twice, no deadline later than before, and left alone it ends in a report."""
    ladder, now_ns, deadlines = StopLadder(), 0, []
    for event, gap_ns in steps:
        now_ns += gap_ns
        before = ladder.rung
        ladder.step(event, now_ns=now_ns)
        assert ORDER.index(ladder.rung) >= ORDER.index(before)
        assert (ladder.due_ns is None) == (ladder.rung in ("standing", "stuck"))
        if ladder.deadline_ns is not None:
            deadlines.append(ladder.deadline_ns)
    assert deadlines == sorted(deadlines, reverse=True)
    ladder.step(StopOrdered(), now_ns=now_ns)
    seen: list[type] = []
    while ladder.due_ns is not None:
        seen += words(ladder.step(Ticked(), now_ns=ladder.due_ns))
    assert ladder.rung == "stuck" and seen.count(ReportRemaining) <= 1
    assert ladder.step(Exited(), now_ns=now_ns) == [] and ladder.rung == "gone"
