"""Reads all events from offset 0, with a cursor that outlives every root, and keeps the stories."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from ottod.ids import session_id
from ottod.protocol import events as ev
from ottod.protocol.control import GapNotice, Grant, Reply, Request, SubscriptionEnded
from ottod.protocol.events import Gap
from ottod.protocol.records import RecordHeader, decode_payload, split_run
from ottod.protocol.requests import Subscribe
from ottod.protocol.results import Subscribed
from tests.chaos.findings import Findings
from tests.chaos.line import Line
from tests.chaos.story import Story

CREDIT_BYTES = 4 * 1024 * 1024
REQUEST_ID = 1


class Witness:
    """`on_event(story, seq's event)` is told of lives' turning points, `on_record` of every record's session."""

    def __init__(self, line: Line, findings: Findings) -> None:
        self._line = line
        self._findings = findings
        self.stories: dict[str, Story] = {}
        self.cursor = 0
        self.events = 0
        self.records = 0
        self.gaps = 0
        self.resumed = 0
        self.missed = 0
        """Offsets that gaps said were gone."""
        self._subscription = -1
        self._generation = -1
        self._gap_spans: list[tuple[int, int]] = []
        self.on_event: Callable[[Story, ev.Event | ev.Unknown, int], None] = lambda story, event, at_ns: None
        self.on_record: Callable[[Story], None] = lambda story: None

    def story(self, session: str) -> Story:
        """The story of a session, new if nothing was heard of it."""
        found = self.stories.get(session)
        if found is None:
            found = self.stories[session] = Story(session, self._findings)
        return found

    def line_of(self, story: Story) -> list[Story]:
        """Its ancestors, the nearest first."""
        line: list[Story] = []
        while story.parent and story.parent in self.stories and len(line) < 10:
            story = self.stories[story.parent]
            line.append(story)
        return line

    def kin_of(self, story: Story) -> list[Story]:
        """The other children of its parent."""
        return [s for s in self.stories.values() if story.parent and s.parent == story.parent and s is not story]

    # ------------------------------------------------------------ the line

    def pump(self) -> int:
        """Takes what has arrived; gives the number of messages."""
        messages = self._line.drain()
        if self._line.is_open and self._line.generation != self._generation:
            # Greeted anew: the subscription went with the old root, the cursor did not.
            self._generation, self._subscription = self._line.generation, -1
            self._gap_spans.clear()
            self.resumed += 1
            self._subscribe()
        for message in messages:
            if isinstance(message, tuple):
                if message[0] == self._subscription:
                    self._run(message[1])
            elif isinstance(message, Reply) and message.id == REQUEST_ID:
                refused = f"the subscription from {self.cursor} was refused: {message.failure}"
                if self._findings.check("offset", isinstance(message.result, Subscribed), refused):
                    assert isinstance(message.result, Subscribed)
                    self._subscription = message.result.subscription
                    found = f"the head is {message.result.head}, offset {self.cursor - 1} was given already"
                    self._findings.check("offset", message.result.head >= self.cursor, found)
            elif isinstance(message, GapNotice) and message.subscription == self._subscription:
                self._gap(message.gap)
            elif isinstance(message, SubscriptionEnded) and message.subscription == self._subscription:
                self._subscribe()
        return len(messages)

    def _subscribe(self) -> None:
        body = Subscribe(from_offset=self.cursor, credit_bytes=CREDIT_BYTES)
        self._line.send(Request(id=REQUEST_ID, body=body))

    def _run(self, run: bytes) -> None:
        for header, payload in split_run(run):
            self._record(header, payload)
        self._line.send(Grant(subscription=self._subscription, bytes=len(run)))

    def _record(self, header: RecordHeader, payload: memoryview) -> None:
        check, story = self._findings.check, self.story(session_id(header.session_key))
        if not check("offset", header.first_offset >= self.cursor, f"offset {header.first_offset} came again"):
            return
        if header.first_offset > max(self.cursor, 1):
            self._explain_hole(header.first_offset)
        self.cursor = header.last_offset + 1
        self.records += 1
        self.events += header.event_count
        entries = decode_payload(payload)
        story.append(header, entries)
        for at_ns, event in entries:
            if not isinstance(event, ev.ContentDelta):
                self.on_event(story, event, at_ns)
        self.on_record(story)

    def _explain_hole(self, until: int) -> None:
        """Everything between the cursor and `until` must lie in gaps."""
        at = self.cursor
        for first, last in sorted(self._gap_spans):
            if first <= at <= last:
                at = last + 1
        found = f"offsets {at} to {until - 1} are missing, and no gap says so"
        self._findings.check("offset", at >= until, found)
        self.missed += until - self.cursor
        self._gap_spans = [span for span in self._gap_spans if span[1] >= until]

    def _gap(self, gap: Gap) -> None:
        self.gaps += 1
        self._findings.note(f"gap {gap}")
        self._gap_spans.append((gap.first, gap.last))
        if gap.session:
            self.story(gap.session).missed(gap.next_seq)
        else:
            for story in self.stories.values():
                if story.exited is None:
                    story.missed(0)

    # ------------------------------------------------------------ what others saw

    def compare(self, reader: str, seen: dict[str, list[tuple[int, int]]], gaps: list[Gap], head: int) -> None:
        """A late reader's records (first and last offset) and gaps against the truth, up to offset `head`."""
        for session, story in self.stories.items():
            spans = sorted(seen.get(session, ()))
            starts = [first for first, _ in spans]
            own_gaps = [(g.first, g.last) for g in gaps if g.session in (session, "")]
            for offset, _, count in story.segments():
                last = offset + count - 1
                if last >= head:
                    break
                place = bisect_right(starts, offset) - 1
                is_seen = place >= 0 and spans[place][0] == offset and spans[place][1] == last
                is_told = any(first <= offset and last <= end for first, end in own_gaps)
                found = f"{reader}: offsets {offset} to {last} were neither given nor said to be missing"
                if is_seen and is_told and any(g.session == session for g in gaps if g.first <= offset <= g.last):
                    self._findings.violated(
                        "late_reader", f"{reader}: {offset} was given and said to be missing", session
                    )
                self._findings.check("late_reader", is_seen or is_told, found, session)
