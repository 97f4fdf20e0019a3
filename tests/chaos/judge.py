"""Judges what the stream says of sessions' lives against what was done to them, and against the database."""

from __future__ import annotations

from collections.abc import Container

from ottod.protocol import events as ev
from ottod.protocol.cause import Cause
from tests.chaos.books import Books
from tests.chaos.deeds import Deeds, S
from tests.chaos.findings import Findings
from tests.chaos.host import Host
from tests.chaos.population import GROUP_RESTARTS, MAX_RESTARTS, PERIOD_S, TOOL_TIMEOUT_S
from tests.chaos.story import Story
from tests.chaos.witness import Witness

PATIENCE_S = 90.0
"""Of the time that root is up: no session stays that long in a passing state, or is silent while it streams."""
SLACK_NS = 2 * S
"""Between the clock of a supervisor's window and the wall clock of its events."""
STREAMING = ("stream", "parent", "child")


class Judge:
    """Writes what it finds into the findings."""

    def __init__(self, *, host: Host, witness: Witness, deeds: Deeds, books: Books, findings: Findings) -> None:
        self._host = host
        self._witness = witness
        self._deeds = deeds
        self._books = books
        self._findings = findings

    def cause(self, story: Story, cause: Cause, at_ns: int) -> None:
        """An end, or the loss of an incarnation: something that was done must explain it."""
        row = self._books.incarnation(story.session, story.incarnation) if self._deeds.processes else None
        if row is not None and row.process in self._deeds.processes:
            # It was killed between being given to a session and saying its first word.
            self._deeds.killed.add((story.session, story.incarnation))
        objection = self._deeds.objection(
            story, cause, at_ns, self._witness.line_of(story), self._witness.kin_of(story)
        )
        text = f"incarnation {story.incarnation} of a {story.agent}: {cause}: {objection} ({cause.message})"
        self._findings.check("cause", not objection, text, story.session)

    def allowance(self, story: Story, event: ev.IncarnationExited, at_ns: int) -> None:
        """A session without a parent has the daemon's allowance to itself; children share their group's."""
        since_ns = at_ns - int(PERIOD_S * S)
        # What was booked in the last moment before root's death need not have reached the disk.
        slack = self._deeds.root_deaths_since(since_ns - SLACK_NS)
        if not story.parent:
            booked = story.booked_ns()
            if event.restart == "scheduled":
                recent = sum(at > since_ns for at in booked)
                found = f"restarted {recent} times within {PERIOD_S:.0f} s, {MAX_RESTARTS} are allowed"
                self._findings.check("allowance", recent <= MAX_RESTARTS + slack, found, story.session)
            elif not slack:
                recent = sum(at > since_ns - SLACK_NS for at in booked)
                found = f"parked after {recent} restarts, {MAX_RESTARTS} are allowed"
                self._findings.check("allowance", recent >= MAX_RESTARTS, found, story.session)
        elif event.restart == "scheduled" and (parent := self._witness.stories.get(story.parent)) is not None:
            group = [each for each in self._witness.kin_of(story) if each.agent == story.agent] + [story]
            given_up_ns = max((loss.at_ns for loss in parent.losses), default=0)
            recent = sum(at > max(since_ns, given_up_ns) for each in group for at in each.booked_ns())
            allowed = GROUP_RESTARTS + slack
            is_kept = parent.exited is not None  # Then each of them is a session of its own.
            found = f"its group was restarted {recent} times within {PERIOD_S:.0f} s, {GROUP_RESTARTS} are allowed"
            if story.agent == "child" and not is_kept:
                self._findings.check("allowance", recent <= allowed, found, story.session)

    def progress(self, story: Story) -> None:
        """A live session, now and then: nothing that should pass may stay."""
        if not self._host.is_up:
            return
        silence_s = self._findings.up_s - story.heard_s
        is_passing = story.state in ("starting", "stopping", "restarting")
        is_streaming = story.has_worker and story.agent in STREAMING
        if is_passing or is_streaming:
            found = f"{story.state}, and silent for {silence_s:.0f} s"
            if not self._findings.check("progress", silence_s < PATIENCE_S, found, story.session):
                story.heard_s = self._findings.up_s
        is_frozen = (story.session, story.incarnation) in self._deeds.frozen
        for call, since_s in list(story.open_calls.items()):
            age_s = self._findings.up_s - since_s
            found = f"tool call {call} runs for {age_s:.0f} s, {TOOL_TIMEOUT_S:.0f} are allowed"
            if not self._findings.check(
                "progress", is_frozen or age_s < TOOL_TIMEOUT_S + PATIENCE_S, found, story.session
            ):
                del story.open_calls[call]

    def database(self, removed: Container[str]) -> None:
        """At the end: all that the stream says of sessions is on record, and nothing else."""
        check, rows = self._findings.check, self._books.sessions()
        for session, story in self._witness.stories.items():
            row = rows.pop(session, None)
            if session in removed and row is None:
                place = self._host.daemon.base / "state" / "sessions" / session
                check("database", not place.exists(), "it was forgotten, and its files are there", session)
                continue
            if not check("database", row is not None, "the database does not know it", session) or row is None:
                continue
            said = (row.state, row.cause, row.last_seq, row.remaining_pids)
            exited = story.exited
            seen = ("ended", story.last_cause(), story.next_seq - 1, exited.remaining_pids if exited else ())
            check("database", said == seen, f"the database says {said}, the stream {seen}", session)
        check("database", not rows, f"the database knows sessions that the stream does not: {sorted(rows)}")
        check("database", not self._books.open_incarnations(), f"never ended: {self._books.open_incarnations()}")
