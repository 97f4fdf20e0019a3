"""What users do meanwhile: start sessions and children, stop and kill them, talk to them, unpark, wait and forget."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable

from ottod.errors import Failure
from ottod.protocol.requests import (
    GetMetrics,
    GetStatus,
    KillSession,
    RemoveSession,
    RequestBody,
    SendInput,
    StartSession,
    StopSession,
    UnparkSession,
    WaitSession,
)
from ottod.protocol.results import (
    DaemonStatus,
    MetricFamily,
    MetricsReport,
    Result,
    SessionInfo,
    SessionStartedResult,
    StopResult,
)
from tests.chaos.deeds import Deeds
from tests.chaos.desk import Desk
from tests.chaos.findings import Findings
from tests.chaos.host import Host
from tests.chaos.population import KINDS, Guest, Population
from tests.chaos.story import Story
from tests.chaos.witness import Witness

PAUSE_S = 0.5
"""Between two deeds of users, in the mean."""
STARTS_AT_ONCE = 4
LOOK_EVERY_S = 2.0
"""Between two readings of the daemon's instruments."""
MAX_WAITS = 40
DEEDS: dict[str, int] = {"stop": 4, "kill": 3, "unpark": 6, "say": 8, "wait": 3, "remove": 1}


class Operator:
    """`wanted` sessions live at a time. What was asked and lost with root is asked again, where a user would."""

    def __init__(
        self,
        random_: random.Random,
        *,
        host: Host,
        desk: Desk,
        witness: Witness,
        deeds: Deeds,
        findings: Findings,
        population: Population,
        wanted: int,
    ) -> None:
        self._random = random_
        self._host = host
        self._desk = desk
        self._witness = witness
        self._deeds = deeds
        self._findings = findings
        self._population = population
        self._wanted = wanted
        self._starting: dict[str, StartSession] = {}
        """By key: asked for, and not answered yet."""
        self._unasked: list[Guest] = []
        self._lost_starts: list[tuple[StartSession, int]] = []
        self._lost_stops: list[str] = []
        self.sessions_by_key: dict[str, str] = {}
        self._stopping: dict[str, RequestBody] = {}
        self.stopped: dict[str, StopResult] = {}
        self.removed: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._waits = 0
        self._next_s = 0.0
        self._look_due_s = 0.0
        self._is_looking = False
        """One reading at a time: two that root makes side by side need not be answered in their order."""
        self._counters: dict[tuple[str, ...], float] = {}
        self._counters_of = ""
        self.is_closing = False

    def live(self) -> list[Story]:
        """Sessions that have not ended, as the witness knows."""
        return [s for s in self._witness.stories.values() if s.exited is None]

    def tick(self, now_s: float) -> None:
        """Keeps the number of sessions, and does what users do now and then."""
        if not self._desk.is_open:
            return
        self._ask_again()
        if now_s >= self._look_due_s and not self._is_looking:
            self._is_looking = True
            self._look_due_s = now_s + LOOK_EVERY_S
            self._desk.ask(GetStatus(), self._heard_status)
            instance = self._host.instance
            if not self._desk.ask(GetMetrics(), lambda result, failure: self._heard_metrics(instance, result)):
                self._is_looking = False
        if self.is_closing:
            return
        missing = self._wanted - len(self.live()) - len(self._starting) - len(self._unasked)
        if missing > 0 and len(self._starting) < STARTS_AT_ONCE and not self._unasked:
            self._unasked.append(self._population.top())
        while self._unasked and len(self._starting) < STARTS_AT_ONCE:
            self._start(self._unasked.pop())
        if now_s >= self._next_s:
            self._next_s = now_s + self._random.expovariate(1 / PAUSE_S)
            self._do(self._random.choices(list(DEEDS), list(DEEDS.values()))[0])

    @property
    def is_starting(self) -> bool:
        """Whether a start is on its way."""
        return bool(self._starting)

    def is_being_stopped(self, session: str) -> bool:
        """Whether a stop is on its way."""
        return session in self._stopping

    # ------------------------------------------------------------ starts

    def _start(self, guest: Guest) -> None:
        key = guest.request.key
        self._starting[key] = guest.request
        self._send_start(guest.request, guest.children)

    def _send_start(self, request: StartSession, children: int) -> None:
        def heard(result: Result | None, failure: Failure | None) -> None:
            if isinstance(result, SessionStartedResult):
                self._started(request, children, result)
            elif failure is not None:
                # The parent may have ended meanwhile, or the daemon be full of stopping sessions.
                self._starting.pop(request.key, None)
                is_known = failure.code in ("session_ended", "too_many_children", "not_found", "no_session")
                self._findings.check("answers", is_known or not request.parent, f"refused: {failure}")
            elif self.is_closing:
                self._starting.pop(request.key, None)
            else:
                self._lost_starts.append((request, children))

        self._desk.ask(request, heard)

    def _started(self, request: StartSession, children: int, result: SessionStartedResult) -> None:
        self._starting.pop(request.key, None)
        known = self.sessions_by_key.setdefault(request.key, result.session)
        found = f"key {request.key} gave {known} and {result.session}"
        self._findings.check("idempotency", known == result.session, found)
        self.counts["started"] += 1
        for _ in range(children):
            self._unasked.append(self._population.child(result.session))

    def note_created(self, story: Story) -> None:
        """The stream says that a session was created: its title is its key."""
        if not story.title.startswith("chaos-"):
            return
        known = self.sessions_by_key.setdefault(story.title, story.session)
        found = f"key {story.title} made {known} and {story.session}"
        self._findings.check("idempotency", known == story.session, found)

    # ------------------------------------------------------------ what users do

    def _do(self, deed: str) -> None:
        done = {
            "stop": self._stop_one,
            "kill": self._kill_one,
            "unpark": self._unpark_one,
            "say": self._say,
            "wait": self._wait,
            "remove": self._remove,
        }[deed]()
        if done:
            self.counts[deed] += 1

    def _pick(self, stories: Iterable[Story]) -> Story | None:
        found = [s for s in stories if s.session not in self._stopping and s.created is not None]
        return self._random.choice(found) if found else None

    def _stop_one(self) -> bool:
        story = self._pick(self.live())
        if story is None:
            return False
        self.stop(story.session, self._random.choice((None, 0.0, 0.5, 5.0)))
        return True

    def _kill_one(self) -> bool:
        story = self._pick(self.live())
        if story is None:
            return False
        self._ask_stop(story.session, KillSession(session=story.session, reason="killed by chaos"))
        return True

    def stop(self, session: str, grace_s: float | None) -> None:
        """Asks for a stop until it is answered."""
        self._ask_stop(session, StopSession(session=session, grace_s=grace_s, reason="stopped by chaos"))

    def _ask_stop(self, session: str, body: RequestBody) -> None:
        self._stopping[session] = body
        self._deeds.stopped(session, time.time_ns())

        def heard(result: Result | None, failure: Failure | None) -> None:
            if isinstance(result, StopResult):
                self._stopping.pop(session, None)
                self._heard_stop(result)
            elif failure is not None:
                self._stopping.pop(session, None)
                self._findings.check("answers", session in self.removed, f"a stop was refused: {failure}", session)
            else:
                self._lost_stops.append(session)

        if not self._desk.ask(body, heard):
            self._lost_stops.append(session)

    def _heard_stop(self, result: StopResult) -> None:
        self.stopped[result.session] = result
        remaining = f"the stop left {result.remaining_pids}"
        self._findings.check("no_process", not result.remaining_pids, remaining, result.session)
        self._findings.check("stop_wins", bool(result.cause), "a stop without a cause", result.session)

    def _unpark_one(self) -> bool:
        story = self._pick(s for s in self.live() if s.state == "parked")
        return story is not None and self._desk.ask(UnparkSession(session=story.session), ignore)

    def _say(self) -> bool:
        story = self._pick(s for s in self.live() if KINDS[s.agent].mode == "conversation")
        if story is None:
            return False
        self.counts["words"] += 1
        body = SendInput(session=story.session, text=f"word {self.counts['words']}")
        return self._desk.ask(body, ignore)

    def _wait(self) -> bool:
        story = self._pick(self.live())
        if story is None or self._waits >= MAX_WAITS:
            return False
        self._waits += 1
        session = story.session

        def heard(result: Result | None, failure: Failure | None) -> None:
            self._waits -= 1
            if isinstance(result, SessionInfo):
                is_over = result.state in ("ended", "parked")
                self._findings.check("answers", is_over, f"a wait ended at {result.state}", session)

        return self._desk.ask(WaitSession(session=session), heard)

    def _remove(self) -> bool:
        ended = [s for s in self._witness.stories.values() if s.exited is not None and s.session not in self.removed]
        if not ended:
            return False
        session = self._random.choice(ended).session
        self.removed.add(session)
        return self._desk.ask(RemoveSession(session=session), ignore)

    def _ask_again(self) -> None:
        starts, self._lost_starts = self._lost_starts, []
        for request, children in starts:
            self._send_start(request, children)
        stops, self._lost_stops = self._lost_stops, []
        for session in stops:
            self._ask_stop(session, self._stopping[session])

    # ------------------------------------------------------------ instruments

    def _heard_status(self, result: Result | None, failure: Failure | None) -> None:
        if isinstance(result, DaemonStatus) and self._host.is_up and result.pid == self._host.daemon.pid:
            self._host.zygote_pid = result.zygote_pid

    def _heard_metrics(self, instance: str, result: Result | None) -> None:
        self._is_looking = False
        if not isinstance(result, MetricsReport):
            return
        now = counters(result.families)
        if instance == self._counters_of:
            for name, before in self._counters.items():
                after = now.get(name, 0.0)
                self._findings.check("counters", after >= before, f"{name} went from {before} to {after}")
        self._counters, self._counters_of = now, instance


def counters(families: Iterable[MetricFamily]) -> dict[tuple[str, ...], float]:
    """All that may only grow: counters, and the counts and sums of histograms."""
    found: dict[tuple[str, ...], float] = {}
    for family in families:
        for sample in family.samples:
            labels = tuple(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            if family.kind == "counter":
                found[(family.name, *labels)] = sample.value
            elif family.kind == "histogram":
                found[(family.name, "sum", *labels)] = sample.value
                found[(family.name, "count", *labels)] = sample.count
    return found


def ignore(result: Result | None, failure: Failure | None) -> None:
    """Whatever the answer is: that there is one is what counts."""
