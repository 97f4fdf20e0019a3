"""What the stream says about one session, checked at every event."""

from __future__ import annotations

from array import array
from collections import deque

from ottod.protocol import events as ev
from ottod.protocol.cause import Cause
from ottod.protocol.records import RecordHeader
from tests.chaos.findings import Findings

SEQ_MARGIN = 1_000_000
"""How far a new root may jump ahead where the ring has forgotten a session and the database is a second behind."""
MAX_LOSSES = 10_000
USERS = "by chaos"
"""How the reasons of users' stops end."""

SegmentList = list[tuple[int, int, int]]
"""First offset, first seq, number of events."""


class Loss:
    """An incarnation that ended while its session went on."""

    def __init__(self, event: ev.IncarnationExited, at_ns: int) -> None:
        self.event = event
        self.at_ns = at_ns


class Story:
    """One session. `heard_s`, and the times of open calls, are of the clock that runs only while root is up."""

    def __init__(self, session: str, findings: Findings) -> None:
        self.session = session
        self._findings = findings
        self.created: ev.SessionCreated | None = None
        self.created_ns = 0
        self.agent = ""
        self.parent = ""
        self.title = ""
        self.next_seq = 1
        self.is_partial = False
        """Something of it was missed, with a gap that said so."""
        self.incarnation = 0
        self.started: ev.SessionStarted | None = None
        self.starts: dict[int, int] = {}
        """Incarnation → pid."""
        self.state = "starting"
        self.stopping_since_seq = 0
        self.stop_reason = ""
        self.losses: deque[Loss] = deque(maxlen=MAX_LOSSES)
        self.unparked_ns = 0
        self.exited: ev.SessionExited | None = None
        self.exited_ns = 0
        self.heard_s = 0.0
        self.open_calls: dict[str, float] = {}
        """Tool calls that run, and since when. Those that wait for other sessions are not among them."""
        self.events = 0
        self.offsets = array("Q")
        self.seqs = array("Q")
        self.counts = array("Q")
        self._item = ""
        self._next_number: int | None = None

    # ------------------------------------------------------------ records

    def append(self, header: RecordHeader, entries: list[tuple[int, ev.Event | ev.Unknown]]) -> None:
        """One record, in its place."""
        check = self._findings.check
        if header.first_seq != self.next_seq:
            check("seq", self.is_partial, f"seq {header.first_seq} came where {self.next_seq} was due", self.session)
            self._next_number = None
        check("one_end", self.exited is None, f"seq {header.first_seq} after its end", self.session)
        check(
            "seq", header.event_count == len(entries), "the header counts other events than there are", self.session
        )
        self._findings.checks["seq"] += header.event_count
        self.is_partial = False
        self.next_seq = header.last_seq + 1
        self.events += header.event_count
        self.heard_s = self._findings.up_s
        self.offsets.append(header.first_offset)
        self.seqs.append(header.first_seq)
        self.counts.append(header.event_count)
        for number, (at_ns, event) in enumerate(entries):
            self._event(header.first_seq + number, at_ns, event)

    def missed(self, next_seq: int) -> None:
        """A gap: what comes next is `next_seq`, or unknown if 0."""
        self.is_partial = True
        if next_seq:
            self._findings.check("seq", next_seq >= self.next_seq, f"a gap leads back to {next_seq}", self.session)
            self.next_seq = next_seq
            self.is_partial = False
        self._next_number = None

    def _event(self, seq: int, at_ns: int, event: ev.Event | ev.Unknown) -> None:
        match event:
            case ev.ContentDelta():
                if event.stream == "text":
                    self._count(event)
            case ev.SessionCreated():
                self._findings.check("seq", seq == 1, f"it was created at seq {seq}", self.session)
                self.created, self.created_ns = event, at_ns
                self.agent, self.parent, self.title = event.agent, event.parent, event.title
            case ev.SessionStarted():
                self._started(event)
            case ev.SessionStateChanged():
                self._moved(seq, event, at_ns)
            case ev.IncarnationExited():
                self._lost(event, at_ns)
            case ev.SessionExited():
                self._findings.note(f"{self.session} {self.agent} exited {event.cause} {event.cause.message}")
                self.exited, self.exited_ns = event, at_ns
                self.open_calls.clear()
            case ev.ToolStarted():
                if event.tool != "spawn_agent":
                    self.open_calls[event.call] = self._findings.up_s
            case ev.ToolCompleted() | ev.ToolFailed():
                self.open_calls.pop(event.call, None)
            case ev.TurnStarted() | ev.ItemStarted() | ev.ModelRetried():
                self._item, self._next_number = "", None
            case _:
                pass

    def _count(self, event: ev.ContentDelta) -> None:
        """Streams number their pieces from 0: within an item each number comes once and in order."""
        words = event.text.split()
        if len(words) != 3 or not words[2].isdigit():
            return
        number = int(words[2])
        due = self._next_number if event.item == self._item else 0
        if due is not None or number == 0:
            found = f"piece {number} of {event.item or 'its text'} came where {due} was due"
            self._findings.check("content", due is None or number == due, found, self.session)
        self._item, self._next_number = event.item, number + 1

    # ------------------------------------------------------------ its life

    def _started(self, event: ev.SessionStarted) -> None:
        self._findings.note(f"{self.session} {self.agent} started {event.incarnation} as {event.pid}")
        check = self._findings.check
        check("stop_wins", not self.stopping_since_seq, f"{event.incarnation} started after a stop", self.session)
        later = event.incarnation > self.incarnation
        check("identity", later, f"incarnation {event.incarnation} after {self.incarnation}", self.session)
        self.started, self.incarnation = event, event.incarnation
        self.starts[event.incarnation] = event.pid
        self.open_calls.clear()
        self._item, self._next_number = "", 0

    def _moved(self, seq: int, event: ev.SessionStateChanged, at_ns: int) -> None:
        self._findings.note(f"{self.session} {event.previous} -> {event.state} {event.reason}")
        if self.stopping_since_seq:
            is_stop = event.state in ("stopping", "ended")
            self._findings.check("stop_wins", is_stop, f"{event.state} after a stop", self.session)
        if event.state == "stopping" and not self.stopping_since_seq:
            self.stopping_since_seq, self.stop_reason = seq, event.reason
        if event.previous == "parked":
            self.unparked_ns = at_ns
        self.state = event.state

    def _lost(self, event: ev.IncarnationExited, at_ns: int) -> None:
        how = f"{event.cause} {event.restart} in {event.delay_ms} ms"
        self._findings.note(f"{self.session} {self.agent} lost {event.incarnation}: {how}")
        is_passing = event.restart == "group" or event.cause.code == "launcher_lost"
        if is_passing and not self.stop_reason.endswith(USERS):
            self.stopping_since_seq = 0  # Only this incarnation was stopped, so that another one takes its place.
        found = f"a restart is announced ({event.restart}) after a stop"
        self._findings.check("stop_wins", not self.stopping_since_seq, found, self.session)
        self.incarnation = max(self.incarnation, event.incarnation)
        self.losses.append(Loss(event, at_ns))
        self.open_calls.clear()
        self.state = "restarting"

    # ------------------------------------------------------------ asked by others

    @property
    def has_worker(self) -> bool:
        """It is up, as far as the stream says."""
        lost = self.losses[-1].event.incarnation if self.losses else 0
        return self.exited is None and self.started is not None and self.started.incarnation > lost

    def segments(self) -> SegmentList:
        """All that was seen of it."""
        return list(zip(self.offsets, self.seqs, self.counts, strict=True))

    def last_cause(self) -> Cause | None:
        """The cause that it ended with."""
        return self.exited.cause if self.exited is not None else None

    def booked_ns(self) -> list[int]:
        """When restarts were booked against it since it was last unparked."""
        return [
            loss.at_ns
            for loss in self.losses
            if loss.event.restart == "scheduled" and loss.at_ns > self.unparked_ns
            if loss.event.cause.kind != "daemon_stop"
        ]
