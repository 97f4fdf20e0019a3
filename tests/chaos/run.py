"""One run: everything together, from the first session to the proof that nothing is left."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from ottod.protocol import events as ev
from tests.chaos.books import Books
from tests.chaos.census import Census
from tests.chaos.deeds import Deeds
from tests.chaos.desk import Desk
from tests.chaos.findings import Findings
from tests.chaos.host import SETTINGS, Host
from tests.chaos.judge import STREAMING, Judge
from tests.chaos.operator import Operator
from tests.chaos.population import Population, write_scripts
from tests.chaos.storm import Storm
from tests.chaos.story import Story
from tests.chaos.witness import Witness
from tests.daemon.harness import RealDaemon

TICK_S = 0.01
LOOK_EVERY_S = 0.7
JUDGE_EVERY_S = 2.0
CLOSING_S = 240.0
OVERTIME_S = 120.0
CHECKED_AT_THE_END = {"late_reader", "nothing_left", "database"}


class Adoption(NamedTuple):
    """How long a new root took, in seconds from its predecessor's death."""

    down_s: float
    heard_s: float


class Run:
    """Built around a daemon that is not started yet."""

    def __init__(self, daemon: RealDaemon, *, seed: int, sessions: int, duration_s: float) -> None:
        self.daemon = daemon
        self.seed = seed
        self.duration_s = duration_s
        self.sessions = sessions
        self.findings = Findings()
        self.deeds = Deeds()
        self.census = Census(daemon.base)
        self.books = Books(daemon.base / "state")
        self.host = Host(daemon, self.findings, self.census, self.deeds)
        self.witness = Witness(self.host.line("witness", is_lasting=True), self.findings)
        self.desk = Desk(self.host.line("desk", is_lasting=True), self.findings)
        chance = random.Random(seed)
        population = Population(random.Random(chance.random()), daemon.workdir, seed)
        self.operator = Operator(
            random.Random(chance.random()),
            host=self.host,
            desk=self.desk,
            witness=self.witness,
            deeds=self.deeds,
            findings=self.findings,
            population=population,
            wanted=sessions,
        )
        self.judge = Judge(
            host=self.host,
            witness=self.witness,
            deeds=self.deeds,
            books=self.books,
            findings=self.findings,
        )
        self.storm = Storm(random.Random(chance.random()), self, duration_s)
        self.adoptions: list[Adoption] = []
        self.causes: Counter[str] = Counter()
        self._died_s = 0.0
        self._up_again_s = 0.0
        self._unheard: set[str] = set()
        self._ended_up_s: dict[str, float] = {}
        self._look_due_s = self._judge_due_s = 0.0
        self._began_s = self._ticked_s = time.monotonic()
        self.witness.on_event = self._event
        self.witness.on_record = self._record
        self.host.on_up = self._root_is_up

    @property
    def is_settled(self) -> bool:
        """The last root's heirs have all been heard of: only then is the next one hurt."""
        return not self._unheard

    # ------------------------------------------------------------ the loop

    def execute(self) -> None:
        """The whole run."""
        write_scripts(self.daemon.workdir, self.daemon.base / "config" / "agents")
        self.host.start()
        try:
            self._fill()
            self._began_s = time.monotonic()
            while self.findings.now_s < self.duration_s or self._is_owing():
                self._tick()
                self.operator.tick(self.findings.now_s)
                self.storm.tick(self.findings.now_s)
            self._close()
        finally:
            self.storm.end()
            self.host.close()

    def _is_owing(self) -> bool:
        """A short run goes on until it has done and seen everything once, within reason."""
        if self.findings.now_s > self.duration_s + OVERTIME_S:
            return False
        unchecked = set(self.findings.unchecked()) - CHECKED_AT_THE_END
        return self.storm.is_owing or bool(unchecked) or not self.adoptions

    def _fill(self) -> None:
        """All sessions are there before the storm begins."""
        self._until("the first sessions", lambda: len(self.operator.live()) >= self.sessions, 240.0)

    def _until(self, what: str, is_done: Callable[[], bool], limit_s: float) -> bool:
        deadline_s = time.monotonic() + limit_s
        while not is_done():
            self._tick()
            self.operator.tick(self.findings.now_s)
            self.storm.tick_visitors(self.findings.now_s)
            if time.monotonic() > deadline_s:
                self.findings.violated("progress", f"{what}: not within {limit_s:.0f} s")
                return False
        return True

    def _tick(self) -> None:
        self.host.tick()
        now_s = time.monotonic()
        if self.host.is_up:
            # A loop that was away itself must not count that as root's silence.
            self.findings.up_s += min(now_s - self._ticked_s, 0.5)
        self._ticked_s = now_s
        self.findings.now_s = now_s - self._began_s
        if not self.witness.pump() + self.desk.pump():
            time.sleep(TICK_S)
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + LOOK_EVERY_S
            self.census.look()
        if now_s >= self._judge_due_s:
            self._judge_due_s = now_s + JUDGE_EVERY_S
            self.desk.check_hanging(self._ended_up_s.get)
            for story in self.operator.live():
                self.judge.progress(story)

    # ------------------------------------------------------------ root

    def kill_root(self, delay_s: float) -> None:
        """kill -9; those who stream now are to be heard again from the next root."""
        self._unheard = {
            s.session
            for s in self.operator.live()
            if s.has_worker and s.agent in STREAMING and s.state == "running" and self._is_well(s)
        }
        self._died_s = time.monotonic()
        self.host.kill(delay_s)

    def _is_well(self, story: Story) -> bool:
        name = (story.session, story.incarnation)
        return name not in self.deeds.killed and name not in self.deeds.frozen

    def _root_is_up(self) -> None:
        self._up_again_s = time.monotonic()

    def _record(self, story: Story) -> None:
        if story.session in self._unheard:
            self.await_no_more(story.session)

    def await_no_more(self, session: str) -> None:
        """The session was heard of again after root's death, or cannot be expected to be."""
        if session not in self._unheard:
            return
        self._unheard.discard(session)
        if not self._unheard and self._died_s:
            now_s = time.monotonic()
            self.adoptions.append(Adoption(self._up_again_s - self._died_s, now_s - self._died_s))
            self._died_s = 0.0

    # ------------------------------------------------------------ events

    def _event(self, story: Story, event: ev.Event | ev.Unknown, at_ns: int) -> None:
        match event:
            case ev.SessionCreated():
                self.operator.note_created(story)
            case ev.SessionStarted():
                self._started(story, event)
            case ev.IncarnationExited():
                self._lost(story, event, at_ns)
            case ev.SessionExited():
                self._exited(story, event, at_ns)
            case ev.SessionStateChanged() if event.state == "stopping":
                self.await_no_more(story.session)

    def _started(self, story: Story, event: ev.SessionStarted) -> None:
        row = self.books.incarnation(story.session, event.incarnation)
        is_on_record = row is not None and row.process.pid == event.pid
        if story.session in self.operator.removed:
            return
        found = f"incarnation {event.incarnation} works as {event.pid}, on record is {row}"
        if self.findings.check("identity", is_on_record, found, story.session):
            assert row is not None
            self.census.add_worker(story.session, event.incarnation, row.process)
            if row.process in self.deeds.processes:
                self.deeds.killed.add((story.session, event.incarnation))

    def _lost(self, story: Story, event: ev.IncarnationExited, at_ns: int) -> None:
        self.await_no_more(story.session)
        self.causes[f"{event.cause} (goes on: {event.restart})"] += 1
        worker = self.census.worker(story.session, event.incarnation)
        found = f"incarnation {event.incarnation} is said to be lost, and {worker} lives"
        self.findings.check("no_process", worker is None, found, story.session)
        if event.restart != "group":
            self.judge.cause(story, event.cause, at_ns)
            self.judge.allowance(story, event, at_ns)

    def _exited(self, story: Story, event: ev.SessionExited, at_ns: int) -> None:
        self.await_no_more(story.session)
        self._ended_up_s[story.session] = self.findings.up_s
        self.causes[f"{event.cause}" + (f" {event.cause.code}" if event.cause.code else "")] += 1
        alive = [p for p in self.census.alive(story.session) if p.pid not in event.remaining_pids]
        self.findings.check("no_process", not alive, f"it has ended, and {alive} live", story.session)
        if event.remaining_pids:
            self.findings.violated("no_process", f"its end is not proved: {event.remaining_pids}", story.session)
        self.judge.cause(story, event.cause, at_ns)

    # ------------------------------------------------------------ the end

    def _close(self) -> None:
        """Stops everything, proves that nothing is left, and compares what was said."""
        self.findings.note("the storm is over")
        self.operator.is_closing = True
        self.storm.end()
        self._until("root is back", lambda: self.host.is_up and self.desk.is_open and self.is_settled, 120.0)
        self._until("all have ended", self._stop_all, CLOSING_S)
        self._until("every request is answered", lambda: not self.desk.pending or self._only_looks(), 90.0)
        before = self.findings.checks["late_reader"]
        self.storm.read_late()
        self._until("a last reader", lambda: not self.storm.is_reading, 120.0)
        self.findings.check(
            "late_reader", self.findings.checks["late_reader"] > before, "the last reader saw nothing"
        )
        status = self.daemon.stop()
        self.findings.check("nothing_left", status == 0, f"root left with status {status}")
        left = self.census.leftovers(self.witness.stories)
        self.findings.check("nothing_left", not left, f"processes are left: {left}")
        sockets = [path.name for path in (self.daemon.base / "run").glob("*.sock")]
        self.findings.check("nothing_left", not sockets, f"sockets are left: {sockets}")
        self.judge.database(self.operator.removed)

    def _stop_all(self) -> bool:
        """Asks for the stop of all that live, top first; True when all have ended."""
        live = self.operator.live()
        for story in live:
            if story.created is not None and not self.operator.is_being_stopped(story.session):
                above = [s for s in self.witness.line_of(story) if s.exited is None]
                if not above:
                    self.operator.stop(story.session, 3.0)
        return not live and not self.operator.is_starting

    def _only_looks(self) -> bool:
        return all(type(ask.body).__name__.startswith("Get") for ask in self.desk.pending.values())


def new_daemon() -> RealDaemon:
    """A daemon as the run needs it."""
    return RealDaemon(SETTINGS)
