"""What must be true, whatever happens: DESIGN §3 as far as root can break it.

The oracle sees the truth from outside: what workers emitted, what went into the ring, which processes exist, what
clients were told. It is asked at every event of that kind and after every step of root's loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ottod.ids import session_id, session_key
from ottod.protocol import events as ev
from ottod.protocol.birth import Birth
from ottod.protocol.cause import Cause, CauseKind
from ottod.protocol.records import HEADER_BYTES, RecordHeader, decode_payload
from ottod.protocol.results import StopResult
from ottod.protocol.worker import Exiting
from ottod.root.session_table import Session
from tests.simulation.processes import Process
from tests.simulation.settings import SETTINGS
from tests.simulation.world import NS, Violation, World

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.root import SimRoot

BOUNDS_EVERY = 8
"""Counting everything costs more than a step does."""
WORKERS_WORD = (
    ev.SessionStarted,
    ev.TurnStarted,
    ev.TurnCompleted,
    ev.ContentDelta,
    ev.ToolStarted,
    ev.ItemCompleted,
)
"""What only a worker says; root must never make one up."""

PASSING = ("starting", "restarting", "stopping")
"""States that a session leaves by itself."""
STOP_REASON = "enough"
"""What clients give as the reason of their stops; other stops come from the tree."""
SEQ_MARGIN = 1_000_000
"""How far a new root may jump ahead where neither ring nor database can say how far a session had got."""
HELD_PER_CLIENT = 8
"""What root may hold for a client that is still there: its subscriptions, its last requests."""
PATIENCE_S = 15.0
"""Longer than it can stay in one of them without an event: longer than every delay and deadline."""


class Story:
    """All that is known of one session."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.last_seq = 0
        self.incarnation = 0
        self.acked_seq = 0
        self.exited: ev.SessionExited | None = None
        self.exit_number = 0
        """Ends are numbered in their order."""
        self.news_ns = 0
        """When its newest event came."""
        self.stop_seen_ns: int | None = None
        self.emitted: dict[int, tuple[int, ev.Event]] = {}
        """Seq → the incarnation that used it last, and for what."""
        self.farewell: tuple[int, CauseKind] | None = None
        """The incarnation whose last word root acknowledged, and the cause in it."""
        self.was_frozen = False
        """One of its workers has been kept from running."""
        self.created: ev.SessionCreated | None = None
        self.is_unbooked = False
        """It was announced while the disk was full: a root that dies before it is not leaves no trace of it."""
        self.restarts_ns: list[int] = []
        """When restarts of it were announced, since it was last given a fresh allowance."""
        self.is_parked = False
        self.unparks = 0
        """Requests to unpark it that are on their way."""
        self.may_return = False
        """Since it was parked somebody has asked for another try."""
        self.was_stopped = False
        """Some root was told to stop it for good, or decided so."""
        self.is_halt_unbooked = False
        """Its worker was stopped for a restart or by a verdict when there may have been no room to write down why."""
        self.was_ending = False
        """Its end had begun, for a reason of the tree, before anybody asked for a stop."""
        self.is_down = False
        """Its worker was lost, and the next one is not ordered yet."""
        self.workers: list[Process] = []


class Oracle:
    """Raises Violation."""

    def __init__(self, world: World, machine: Machine) -> None:
        self._world = world
        self._machine = machine
        self.stories: dict[str, Story] = {}
        self.log: dict[int, tuple[int, int, bytes]] = {}
        """First offset of a record → session key, number of events, sealed payload."""
        self.key_at: dict[int, int] = {}
        """Offset → session key."""
        self._exits = 0
        self._checks = 0
        self.head = 1
        self.is_dirty = False
        self.events = 0

    def story(self, session: str) -> Story:
        found = self.stories.get(session)
        if found is None:
            found = self.stories[session] = Story(session)
        return found

    def fail(self, text: str) -> NoReturn:
        """Raises, and is remembered: root's own handlers may catch what is raised within it."""
        violation = Violation(text)
        self._machine.violation = self._machine.violation or violation
        raise violation

    # ------------------------------------------------------------ workers

    def birth_ordered(self, birth: Birth) -> None:
        """Root has sent a birth."""
        story = self.story(birth.session)
        if story.exited is not None:
            self.fail(f"{birth.session} is born again after its end")
        if story.stop_seen_ns is not None:
            self.fail(f"{birth.session}: incarnation {birth.incarnation} is born although a stop was asked for")
        if birth.incarnation <= story.incarnation:
            self.fail(f"{birth.session}: incarnation {birth.incarnation} after {story.incarnation}")
        if birth.next_seq != story.last_seq + 1 and birth.next_seq <= story.last_seq + SEQ_MARGIN:
            self.fail(f"{birth.session}: born to begin with seq {birth.next_seq}, the ring is at {story.last_seq}")
        alive = [p for p in self._machine.processes.of_session(birth.session) if p in story.workers]
        if alive:
            self.fail(f"{birth.session}: incarnation {birth.incarnation} is born while {alive[0].name} lives")
        story.incarnation, story.is_down = birth.incarnation, False
        self._world.count("births")
        self._world.note("birth of %s.%d", birth.session, birth.incarnation)

    def born(self, birth: Birth, process: Process) -> None:
        """A worker has taken its birth."""
        self.story(birth.session).workers.append(process)

    def emitted(self, session: str, incarnation: int, seq: int, event: ev.Event) -> None:
        self.story(session).emitted[seq] = incarnation, event

    def acked(self, session: str, seq: int) -> None:
        """Root told a worker that everything up to `seq` is in the ring."""
        if seq > self.story(session).last_seq:
            self.fail(f"{session}: seq {seq} was acknowledged, the ring is at {self.story(session).last_seq}")

    def farewell_heard(self, session: str, incarnation: int, word: Exiting) -> None:
        """Root told a worker that its last word was heard."""
        self.story(session).farewell = incarnation, word.cause.kind

    # ------------------------------------------------------------ the ring

    def appended(self, record: bytes, header: RecordHeader, offset: int) -> None:
        story = self.story(session_id(header.session_key))
        self.is_dirty = True
        if offset != self.head:
            self.fail(f"offset {offset} was given, {self.head} was due")
        if header.first_seq != story.last_seq + 1 and not self._may_jump(story, header):
            self.fail(f"{story.session}: seq {header.first_seq} follows {story.last_seq}")
        payload = record[HEADER_BYTES:]
        if story.exited is not None:
            self.fail(f"{story.session}: seq {header.first_seq} after its end: {decode_payload(payload)[0][1]}")
        self.log[offset] = header.session_key, header.event_count, payload
        for number, (_, event) in enumerate(decode_payload(payload)):
            self.key_at[offset + number] = header.session_key
            assert not isinstance(event, ev.Unknown)
            self._event(story, header.first_seq + number, header.incarnation, event)
        story.last_seq, story.news_ns = header.last_seq, self._world.now_ns
        self.head = offset + header.event_count
        self.events += header.event_count

    def _may_jump(self, story: Story, header: RecordHeader) -> bool:
        """Forwards, if the ring had forgotten the session when this root was born."""
        root = self._machine.root
        if root is None or root.life == 1 or header.session_key in root.known_at_birth:
            return False
        return header.first_seq >= story.last_seq + SEQ_MARGIN

    def _event(self, story: Story, seq: int, incarnation: int, event: ev.Event) -> None:
        said = story.emitted.get(seq)
        if said is not None and said == (incarnation, event):
            return
        if isinstance(event, WORKERS_WORD):
            self.fail(f"{story.session}: seq {seq} holds {event}, which its worker did not say there (but {said})")
        self._world.note("%s seq %d: root says %r", story.session, seq, event)
        live = [p for p in self._machine.processes.of_session(story.session) if p in story.workers]
        if said is not None and said[0] == incarnation and live and not live[0].is_doomed:
            self.fail(f"{story.session}: root used seq {seq}, which its living worker uses for {said[1]}")
        match event:
            case ev.SessionExited():
                self._exited(story, event)
            case ev.IncarnationExited():
                self._lost_process(story, event)
            case ev.SessionStateChanged():
                self._moved(story, event)
            case ev.SessionCreated():
                story.created = event
                story.is_unbooked = self._machine.disk.is_full

    def _exited(self, story: Story, event: ev.SessionExited) -> None:
        story.exited = event
        self._world.count(f"end: {event.cause.kind}")
        self._exits += 1
        story.exit_number = self._exits
        self._only_remaining(story, event.remaining_pids)
        self._same_cause(story, event.cause)
        if not event.remaining_pids:
            self._stopped_by_somebody(story, event.cause)
        self._hung_only_if_frozen(story, event.cause)
        self._children_first(story)

    def _stopped_by_somebody(self, story: Story, cause: Cause) -> None:
        """Who was stopped for its group's restart is not stopped for good, however often root dies meanwhile."""
        root = self._machine.root
        session = root.table.get(story.session) if root is not None else None
        if session is None or story.is_down:
            return  # While it has no worker, the end of its group ends it.
        self._note_stop(story, session)
        if story.is_halt_unbooked and self._machine.kills:
            return  # Nobody knows any more.
        was_told = story.farewell == (story.incarnation, "cancelled")
        if cause.kind == "cancelled" and not cause.code and was_told and not story.was_stopped:
            self.fail(f"{story.session} ends as its worker was told to, and nobody has stopped it: {cause}")

    def _note_stop(self, story: Story, session: Session) -> None:
        """What a root takes for a stop that an earlier one had begun was one."""
        if session.is_stop_inherited:
            if not story.was_stopped:
                self.fail(f"{story.session}: root carries on a stop that nobody has begun")
        elif session.stop_cause is not None:
            story.was_stopped = True

    def _moved(self, story: Story, event: ev.SessionStateChanged) -> None:
        """Parked is parked until somebody asks for another try."""
        is_amnesic = bool(self._machine.kills) and self._machine.disk.was_full
        if event.state == "parked":
            self._parked(story)
        elif event.state == "starting":
            if story.is_parked and not story.may_return and not is_amnesic:
                self.fail(f"{story.session} is parked on record, and goes on although nobody has asked for it")
            story.is_parked = False

    def _parked(self, story: Story) -> None:
        story.is_parked, story.may_return = True, story.unparks > 0

    def halted(self, session: str) -> None:
        """A session's worker hears that it is to end, and its session not."""
        self.story(session).is_halt_unbooked = self._machine.disk.was_full

    def unpark_asked(self, session: str) -> None:
        """A client begins to ask for another try of a session."""
        story = self.story(session)
        story.unparks += 1
        story.may_return = True

    def unpark_answered(self, session: str) -> None:
        self.story(session).unparks -= 1

    def _hung_only_if_frozen(self, story: Story, cause: Cause) -> None:
        if cause.kind == "hung" and not story.was_frozen:
            self.fail(f"{story.session} is called hung, and was never kept from running: {cause.message}")

    def _children_first(self, story: Story) -> None:
        """A session ends after all that is below it; a child that is to outlive it has been let go before."""
        root = self._machine.root
        for child in self.stories.values():
            if child.created is None or child.created.parent != story.session or child.exited is not None:
                continue
            session = root.table.get(child.session) if root is not None else None
            if session is not None and not session.is_top:
                self.fail(f"{story.session} ended before its child {child.session}")

    def _same_cause(self, story: Story, cause: Cause) -> None:
        """A last word that root acknowledged is the cause; so is a stop, if there was no worker that could say one.

        The verdict of a group (it has a code) goes before both.
        """
        root = self._machine.root
        session = root.table.get(story.session) if root is not None else None
        if session is None or cause.code or self._machine.kills:
            return
        if story.is_down:
            is_asked = session.stop_reason == STOP_REASON or session.stop_cause == "daemon_stop"
            if is_asked and not story.was_ending and cause.kind != session.stop_cause:
                self.fail(
                    f"{story.session} was stopped ({session.stop_cause}) between two lives; root says {cause.kind}"
                )
        elif story.farewell is not None:
            incarnation, kind = story.farewell
            if incarnation == story.incarnation and kind != cause.kind:
                self.fail(f"{story.session} said that it ended {kind}; root says {cause.kind}")

    def _lost_process(self, story: Story, event: ev.IncarnationExited) -> None:
        self._world.count(f"incarnation lost, {event.restart}")
        self._only_remaining(story, event.remaining_pids)
        if story.stop_seen_ns is not None:
            self.fail(f"{story.session}: a restart is announced although a stop was asked for")
        self._hung_only_if_frozen(story, event.cause)
        story.is_down = True
        if event.restart != "group":
            self._check_allowance(story, is_parked=event.restart == "parked")

    def _check_allowance(self, story: Story, *, is_parked: bool) -> None:
        """A session without a parent has an allowance of its own: it is parked by exceeding it, and only so."""
        allowed, period_ns = SETTINGS.supervision.max_restarts, SETTINGS.supervision.period_s * NS
        recent = [at for at in story.restarts_ns if self._world.now_ns - at <= period_ns]
        if is_parked:
            self._parked(story)
        story.restarts_ns = [] if is_parked else [*recent, self._world.now_ns]
        is_amnesic = bool(self._machine.kills) and (self._machine.has_jumped or self._machine.disk.was_full)
        if story.created is None or story.created.parent or is_amnesic:
            return
        if is_parked and len(recent) < allowed:
            self.fail(f"{story.session} is parked after {len(recent)} restarts; {allowed} are allowed")
        # What was booked in the last moment before a kill need not have reached the disk.
        if not is_parked and len(recent) >= allowed + self._machine.kills:
            self.fail(f"{story.session} is restarted for the {len(recent) + 1}th time; {allowed} are allowed")

    def _only_remaining(self, story: Story, remaining: tuple[int, ...]) -> None:
        alive = {p.pid: p for p in self._machine.processes.of_session(story.session)}
        hidden = set(alive) - set(remaining)
        if hidden:
            names = ", ".join(f"{alive[pid].name} ({pid})" for pid in sorted(hidden))
            self.fail(f"{story.session} has ended, and nobody says that these live: {names}")

    def child_given(self, session: str, child: str, task: str) -> None:
        """Root answered a worker's request for a child."""
        created = self.story(child).created
        if created is None or created.parent != session or created.title != task:
            self.fail(f"{session} asked for a child to do {task!r} and was given {child}: {created}")

    # ------------------------------------------------------------ clients

    def told_of_stop(self, result: StopResult) -> None:
        """A client was told that a session has ended, or what remains of it, and how those below it ended."""
        story = self.story(result.session)
        if story.exited is None and not result.remaining_pids:
            self.fail(f"a client was told that {story.session} has ended; it has not")
        self._only_remaining(story, result.remaining_pids)
        if not result.remaining_pids and not result.already_ended:
            numbers = [self.story(each).exit_number for each in result.stopped]
            if numbers != sorted(numbers) or 0 in numbers or story.session not in result.stopped:
                self.fail(f"the stop of {story.session} says {result.stopped}, which ended as {numbers}")

    def root_dies(self, root: SimRoot) -> None:
        """What the dying root knew at last: it may have died in the middle of a step."""
        for session in root.table.live:
            if session.stop_cause is not None and not session.is_stop_inherited:
                self.story(session.id).was_stopped = True

    def root_died(self) -> None:
        """What the dead root knew of stops is gone, unless a row on disk says it."""
        for story in self.stories.values():
            if story.stop_seen_ns is not None and self._machine.disk.state_of(story.session) != "stopping":
                story.stop_seen_ns = None

    def root_born(self, known: set[int]) -> None:
        """A root has begun with these sessions in its ring.

        An end that could not be booked, because the disk was full, and that the ring has lost to newer events since,
        is known to nobody: the session lives in the books, and this root can only end it once more.
        """
        for story in self.stories.values():
            is_told = session_key(story.session) in known or not self._machine.disk.was_full
            if story.exited is None or is_told or self._machine.disk.state_of(story.session) in ("", "ended"):
                continue
            story.exited, story.was_ending = None, False

    # ------------------------------------------------------------ after each step

    def check(self) -> None:
        """Called after each step of root's loop."""
        if not self.is_dirty:
            return
        self.is_dirty = False
        machine, root = self._machine, self._machine.root
        for process in machine.processes.living():
            exited = self.story(process.owner).exited if process.owner else None
            if exited is not None and process.pid not in exited.remaining_pids:
                self.fail(f"{process.name} ({process.pid}) lives after the end of {process.owner}")
        if root is None:
            return
        for session in root.table.live:
            story = self.story(session.id)
            if story.exited is not None:
                self.fail(f"{session.id} has ended and is in the table as {session.info.state}")
            self._note_stop(story, session)
            story.was_ending = story.was_ending or (session.is_ending and session.stop_cause is None)
            if session.stop_cause is not None and story.stop_seen_ns is None:
                story.stop_seen_ns = self._world.now_ns
        self._checks += 1
        if self._checks % BOUNDS_EVERY == 0:
            self._check_bounds()

    def _check_bounds(self) -> None:
        root = self._machine.root
        assert root is not None
        for what, size, bound in root.sizes():
            if size > bound:
                self.fail(f"{what}: {size}, more than {bound}")

    # ------------------------------------------------------------ at rest

    def check_settled(self) -> None:
        """The faults are over for a while: no live session may wait for something that never comes."""
        root = self._machine.root
        if root is None or not root.is_ready:
            self.fail("root is not back")
        for session in root.table.live:
            state, incarnation = session.info.state, session.incarnation
            alive = [p for p in self._machine.processes.of_session(session.id) if not p.is_stopped]
            quiet_ns = self._world.now_ns - self.story(session.id).news_ns
            is_quiet = quiet_ns > PATIENCE_S * NS
            if state in PASSING and is_quiet:
                self.fail(f"{session.id} is still {state}: {self._machine.describe(session.id)}")
            # A worker may have ended this very moment, and root not have heard of it.
            if state not in (*PASSING, "parked") and (incarnation is None or not alive) and is_quiet:
                self.fail(f"{session.id} is {state} without a worker: {self._machine.describe(session.id)}")
            if state == "parked" and alive:
                self.fail(f"{session.id} is parked with a process: {self._machine.describe(session.id)}")
        for worker in self._machine.born_workers():
            for child in worker.children:
                story = self.story(child)
                if story.exited is not None and self._world.now_ns - story.news_ns > PATIENCE_S * NS:
                    self.fail(f"{worker.process.name} was never told that its child {child} has ended")

    def check_rest(self) -> None:
        """Everything has been stopped and has had the time to end."""
        for story in self.stories.values():
            if story.exited is None and story.last_seq and not (story.is_unbooked and self._machine.kills):
                self.fail(f"{story.session} never ended: {self._machine.describe(story.session)}")
        root = self._machine.root
        for name, size in root.holdings() if root is not None else ():
            if size > HELD_PER_CLIENT * len(self._machine.clients):
                self.fail(f"nothing lives, and {name} still holds {size}")
        left = [p.name for p in self._machine.processes.living() if p.owner]
        if left:
            self.fail(f"processes are left at the end: {', '.join(left)}")
        open_rows = self._machine.disk.open_incarnations()
        if open_rows and not self._machine.disk.was_full:
            self.fail(f"nothing lives, and in the books these never ended: {', '.join(open_rows)}")
