"""The checkers themselves: each kind of lie that a daemon could tell is seen, and a truthful stream is not blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import zmq

from ottod.ids import session_id
from ottod.protocol import events as ev
from ottod.protocol.cause import Cause
from ottod.protocol.events import Gap
from ottod.protocol.records import RecordHeader
from tests.chaos.deeds import Deeds
from tests.chaos.findings import Findings
from tests.chaos.line import Line
from tests.chaos.story import Story
from tests.chaos.witness import Witness

KEY = 7
SESSION = session_id(KEY)
NOW_NS = 1_000_000_000_000

CREATED = ev.SessionCreated(agent="stream", model="scripted:x")
STARTED = ev.SessionStarted(pid=1, incarnation=1)
RUNNING = ev.SessionStateChanged(state="running", previous="starting")
STOPPING = ev.SessionStateChanged(state="stopping", previous="running")
EXITED = ev.SessionExited(cause=Cause(kind="cancelled"))
LOST = ev.IncarnationExited(incarnation=1, cause=Cause(kind="crashed", signal="SIGKILL"))
GOOD = (CREATED, STARTED, RUNNING)


def delta(number: int) -> ev.ContentDelta:
    return ev.ContentDelta(stream="text", text=f"100 101 {number}  ", item="i1")


def header(first_seq: int, count: int, *, offset: int = 0, key: int = KEY) -> RecordHeader:
    return RecordHeader(0, 0, key, offset or first_seq, first_seq, count, 0, 0, 1)


def tell(story: Story, events: Iterable[ev.Event], first_seq: int | None = None) -> None:
    """One record."""
    told = list(events)
    seq = story.next_seq if first_seq is None else first_seq
    story.append(header(seq, len(told)), [(NOW_NS, event) for event in told])


def broken(findings: Findings) -> set[str]:
    return {violation.invariant for violation in findings.violations}


def hole(story: Story) -> None:
    tell(story, GOOD)
    tell(story, [delta(0)], first_seq=9)


def reuse(story: Story) -> None:
    tell(story, GOOD)
    tell(story, [RUNNING], first_seq=3)


def second_end(story: Story) -> None:
    tell(story, [*GOOD, EXITED])
    tell(story, [EXITED])


def lost_piece(story: Story) -> None:
    tell(story, [*GOOD, delta(0), delta(1), delta(3)])


def doubled_piece(story: Story) -> None:
    tell(story, [*GOOD, delta(0), delta(1), delta(1)])


def born_after_stop(story: Story) -> None:
    tell(story, [*GOOD, STOPPING, ev.SessionStarted(pid=2, incarnation=2)])


def restarting_after_stop(story: Story) -> None:
    tell(story, [*GOOD, STOPPING, LOST])


def same_incarnation(story: Story) -> None:
    tell(story, [*GOOD, STARTED])


LIES: dict[Callable[[Story], None], str] = {
    hole: "seq",
    reuse: "seq",
    second_end: "one_end",
    lost_piece: "content",
    doubled_piece: "content",
    born_after_stop: "stop_wins",
    restarting_after_stop: "stop_wins",
    same_incarnation: "identity",
}


@pytest.mark.parametrize(("lie", "invariant"), LIES.items(), ids=lambda each: getattr(each, "__name__", each))
def test_lies_are_seen(lie: Callable[[Story], None], invariant: str) -> None:
    """Each breaks its invariant and no other."""
    findings = Findings()
    lie(Story(SESSION, findings))
    assert broken(findings) == {invariant}


def test_a_truthful_story_is_not_blamed() -> None:
    """A crash in the middle of a stream, another incarnation that begins it anew, a stop, an end."""
    findings = Findings()
    story = Story(SESSION, findings)
    tell(story, [*GOOD, delta(0), delta(1), LOST])
    tell(story, [ev.SessionStarted(pid=2, incarnation=2), delta(0), delta(1), delta(2), STOPPING, EXITED])
    assert not findings.violations and findings.checks["content"] > 3
    assert story.booked_ns() == [NOW_NS]


def witness(findings: Findings) -> Witness:
    """One that is connected to nobody."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    line = Line(context, "ipc:///nowhere", "test")
    context.term()
    return Witness(line, findings)


def test_a_late_reader_is_judged_by_the_truth() -> None:
    """What it was given, or told to be missing, is right; what is neither, or both, is not."""
    cases: list[tuple[list[tuple[int, int]], list[Gap], bool]] = [
        ([(1, 3), (4, 4)], [], True),
        ([(4, 4)], [Gap(first=1, last=3, reason="evicted", session=SESSION, next_seq=4)], True),
        ([(4, 4)], [Gap(first=1, last=3, reason="evicted")], True),
        ([(4, 4)], [], False),
        ([(4, 4)], [Gap(first=1, last=2, reason="evicted", session=SESSION)], False),
        ([(1, 3), (4, 4)], [Gap(first=1, last=3, reason="evicted", session=SESSION)], False),
        ([(1, 2), (4, 4)], [], False),
    ]
    for spans, gaps, is_right in cases:
        findings = Findings()
        seen = witness(findings)
        story = seen.story(SESSION)
        tell(story, GOOD)
        tell(story, [delta(0)])
        seen.compare("reader", {SESSION: spans}, gaps, head=5)
        assert (not findings.violations) == is_right, (spans, gaps)
        assert findings.checks["late_reader"]


def test_causes_that_nobody_caused_are_seen() -> None:
    """A worker that was killed may say so; one that was left alone may not."""
    story = Story(SESSION, Findings())
    tell(story, GOOD)
    crashed = Cause(kind="crashed", signal="SIGKILL")
    deeds = Deeds()
    for cause in (
        crashed,
        Cause(kind="hung"),
        Cause(kind="cancelled"),
        Cause(kind="completed"),
        Cause(kind="memory"),
    ):
        assert deeds.objection(story, cause, NOW_NS, (), ()), cause
    deeds.killed.add((SESSION, 1))
    assert not deeds.objection(story, crashed, NOW_NS, (), ())
    deeds.stopped(SESSION, NOW_NS)
    assert not deeds.objection(story, Cause(kind="cancelled"), NOW_NS, (), ())


def test_an_idle_run_is_no_success() -> None:
    """Invariants that nothing was checked of are named."""
    findings = Findings()
    findings.check("seq", True)
    assert "seq" not in findings.unchecked() and "no_process" in findings.unchecked()
