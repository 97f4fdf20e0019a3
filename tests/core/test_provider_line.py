"""The line before a provider: its bounds hold, everybody is served in turn, and nobody waits for nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from ottod.core.breaker import BreakerSnapshot
from ottod.core.fair_queue import Waiting
from ottod.core.provider_line import (
    MAX_LANES,
    Begin,
    CallAsked,
    CallEnded,
    CallFound,
    CallWithdrawn,
    ClockLooked,
    LaneSnapshot,
    LineAction,
    LineEvent,
    ProviderLine,
    Refuse,
    TellMove,
)
from ottod.core.rate_limit import MINUTE_NS
from ottod.core.throttle import ThrottleSnapshot
from ottod.settings.sections import BreakerSettings, ProviderSettings

S = 1_000_000_000
BREAKER = BreakerSettings(window_s=60, min_calls=4, open_s=5, max_open_s=40, probes=2)


class Rig:
    """A line and a clock. Tickets are given in the order of asking."""

    def __init__(self, **settings: Any) -> None:
        self.now_ns = 0
        self.line = ProviderLine(ProviderSettings(**{"breaker": BREAKER} | settings), now_ns=0)
        self.tickets = 0
        self.begun: list[int] = []
        self.refused: dict[int, Refuse] = {}
        self.moves: list[TellMove] = []

    def step(self, event: LineEvent) -> list[LineAction]:
        actions = self.line.step(event, now_ns=self.now_ns, random=0.5)
        for action in actions:
            match action:
                case Begin():
                    self.begun.append(action.ticket)
                case Refuse():
                    self.refused[action.ticket] = action
                case TellMove():
                    self.moves.append(action)
        return actions

    def ask(self, place: str = "A1", *, model: str = "m", tokens: int = 0, is_patient: bool = True) -> int:
        """`place` is tree and session: `A1` is session A1 of tree A."""
        self.tickets += 1
        waiting = Waiting(
            ticket=self.tickets, session=place, tree=place[0], model=model, tokens=tokens, since_ns=self.now_ns
        )
        self.step(CallAsked(waiting=waiting, is_patient=is_patient))
        return self.tickets

    def end(self, ticket: int, code: str = "", **fields: Any) -> None:
        self.step(CallEnded(ticket=ticket, code=code, **fields))

    def wait(self, seconds: float) -> None:
        """Looks at the clock whenever the line says that something is due, and at the end."""
        until_ns = self.now_ns + round(seconds * S)
        while (due_ns := self.line.due_ns) is not None and due_ns <= until_ns:
            assert due_ns > self.now_ns, "what is due already would be looked at for ever"
            self.now_ns = due_ns
            self.step(ClockLooked())
        self.now_ns = until_ns


def test_calls_beyond_the_cap_wait_for_one_that_ends() -> None:
    """However it ends; and what is withdrawn leaves room for the next."""
    rig = Rig(max_concurrent=2)
    tickets = [rig.ask(place) for place in ("A1", "B1", "C1", "D1")]
    assert rig.begun == tickets[:2]
    rig.step(CallWithdrawn(ticket=tickets[2]))
    rig.end(tickets[0], "lost")
    assert rig.begun == [*tickets[:2], tickets[3]]
    assert (rig.line.running, rig.line.waiting) == (2, 0)


def test_an_end_that_is_told_twice_counts_once() -> None:
    """Nor does the end of a call that never began."""
    rig = Rig(max_concurrent=1)
    first, second = rig.ask(), rig.ask()
    rig.end(first)
    rig.end(first)
    rig.end(77)
    assert rig.begun == [first, second]
    assert rig.line.running == 1


def test_trees_share_the_cap_alike() -> None:
    """A team of forty and a single agent get every other slot."""
    rig = Rig(max_concurrent=1)
    for number in range(40):
        rig.ask(f"A{number}")
    alone = [rig.ask("B1") for _ in range(3)]
    for _ in range(7):
        rig.end(rig.begun[-1])
    # The first began at once, and the team stood in line before the single agent did.
    assert [ticket in alone for ticket in rig.begun[1:]] == [False, True, False, True, False, True, False]


def test_a_refusal_anywhere_closes_the_line_for_everyone() -> None:
    """For as long as the provider asks; another model of it goes on."""
    rig = Rig()
    first = rig.ask("A1")
    rig.end(first, "rate_limited", retry_after_s=3)
    waiting = [rig.ask("B1"), rig.ask("C1")]
    other = rig.ask("D1", model="n")
    assert rig.begun == [first, other]
    rig.wait(2.9)
    assert rig.begun == [first, other]
    rig.wait(0.2)
    assert rig.begun == [first, other, waiting[0]], "after a refusal only one of one may run"


def test_what_is_due_stays_due_until_somebody_looks() -> None:
    """A timer that was late, or taken back for another, loses nobody's turn."""
    rig = Rig()
    rig.end(rig.ask("A1"), "rate_limited", retry_after_s=3)
    waiting = rig.ask("B1")
    rig.now_ns = 10 * S
    assert rig.line.due_ns == 3 * S
    rig.step(ClockLooked())
    assert (rig.begun[-1], rig.line.due_ns) == (waiting, None)


def test_the_rate_holds_for_all_models_together() -> None:
    """Sixty a minute: two at once, then one a second, whichever model is asked for."""
    rig = Rig(requests_per_minute=60)
    for number in range(6):
        rig.ask(f"A{number}", model="mn"[number % 2])
    assert len(rig.begun) == 2
    rig.wait(1.1)
    assert len(rig.begun) == 3
    rig.wait(3)
    assert len(rig.begun) == 6


def test_a_dear_call_is_not_overtaken_by_cheap_ones() -> None:
    """Whoever waits for many tokens gets them: what comes later waits behind it."""
    rig = Rig(tokens_per_minute=600)
    first = rig.ask("A1", tokens=90)
    dear = rig.ask("A1", tokens=100)
    cheap = [rig.ask("B1", tokens=1) for _ in range(5)]
    assert rig.begun == [first]
    rig.wait(60)
    assert rig.begun == [first, dear, *cheap]


@pytest.mark.parametrize(
    ("code", "tokens", "comes_back"),
    [("", 10, 90), ("rate_limited", None, 100), ("connection", None, 100), ("timeout", None, 0), ("cut", 60, 40)],
)
def test_tokens_that_were_not_used_come_back(code: str, tokens: int | None, comes_back: int) -> None:
    """The estimate is settled: an answer by its usage, a call that was never worked on by nothing."""
    rig = Rig(tokens_per_minute=600)
    rig.end(rig.ask(tokens=100), code, tokens=tokens)
    assert rig.line._tokens is not None
    assert (rig.line._tokens.due_ns(comes_back, now_ns=0) <= 0) and (
        comes_back == 100 or rig.line._tokens.due_ns(comes_back + 1, now_ns=0) > 0
    )


def opened(rig: Rig, *, model: str = "m") -> None:
    """Opens a model's breaker, at the time that it is."""
    for ticket in [rig.ask(model=model) for _ in range(4)]:
        rig.end(ticket, "overloaded")


def test_a_model_that_breaks_turns_everyone_away() -> None:
    """Who waits is told at once and for how long; who asks later too; and the session that saw it is told of it."""
    rig = Rig(max_concurrent=4)
    running = [rig.ask("A1") for _ in range(4)]
    waiting = rig.ask("B1")
    for ticket in running[:3]:
        rig.end(ticket, "lost")
        rig.ask("A1")
    assert waiting in rig.begun
    for ticket in list(rig.begun[3:]):
        rig.end(ticket, "timeout")
    late = rig.ask("C1")
    assert rig.moves[0].session in ("A1", "B1")
    assert (rig.moves[0].move.state, rig.moves[0].model) == ("open", "m")
    assert late in rig.refused
    assert rig.refused[late].retry_after_ns == 5 * S
    assert "failed" in rig.refused[late].reason
    assert rig.line.waiting == 0


def test_another_model_does_not_suffer() -> None:
    """Each model has a breaker of its own."""
    rig = Rig()
    opened(rig)
    assert rig.ask(model="n") in rig.begun
    assert rig.ask(model="m") in rig.refused


def test_while_probes_try_the_patient_wait_and_the_others_go_elsewhere() -> None:
    """Once the probes have succeeded everybody is let in; if they fail, everybody is turned away."""
    for code, is_let_in in (("", True), ("overloaded", False)):
        rig = Rig()
        opened(rig)
        rig.wait(5)
        probes = [rig.ask("A1"), rig.ask("B1")]
        patient, impatient = rig.ask("C1"), rig.ask("D1", is_patient=False)
        assert set(probes) <= set(rig.begun)
        assert impatient in rig.refused and rig.refused[impatient].retry_after_ns == 0
        assert patient not in rig.begun and patient not in rig.refused
        for probe in probes:
            rig.end(probe, code)
        assert (patient in rig.begun) == is_let_in
        assert (patient in rig.refused) != is_let_in
        states = [told.move.state for told in rig.moves]
        assert states == ["open", "half_open", "closed" if is_let_in else "open"]


def test_new_settings_hold_at_once() -> None:
    """A higher cap lets calls in, a lower one lets running ones finish; a breaker that is turned off closes."""
    rig = Rig(max_concurrent=1)
    tickets = [rig.ask() for _ in range(3)]
    settings = rig.line.settings
    actions = rig.line.configure(replace(settings, max_concurrent=2), now_ns=0, random=0.5)
    assert actions == [Begin(ticket=tickets[1])]
    assert rig.line.configure(replace(settings, max_concurrent=1), now_ns=0, random=0.5) == []
    assert rig.line.running == 2
    rig.end(tickets[0])
    assert rig.begun == [tickets[0]]
    rig = Rig()
    opened(rig)
    (told,) = rig.line.configure(ProviderSettings(breaker=BreakerSettings(enabled=False)), now_ns=0, random=0.5)
    assert isinstance(told, TellMove) and (told.session, told.move.state) == ("", "closed")
    assert rig.ask() in rig.begun


def test_another_root_takes_it_over() -> None:
    """An open breaker and a pause hold on another clock for as long as they would have here."""
    rig, there = Rig(), Rig()
    opened(rig)
    rig.end(rig.ask(model="n"), "rate_limited", retry_after_s=7)
    rig.wait(1)
    there.now_ns = 123 * S
    snapshots = {model: rig.line.snapshot(model, now_ns=rig.now_ns) for model in ("m", "n", "never seen")}
    there.line.take_over(snapshots, now_ns=there.now_ns)
    assert there.ask(model="m") in there.refused
    patient = there.ask(model="n")
    there.wait(5.9)
    assert patient not in there.begun
    assert there.ask(model="m") in there.begun, "its time is over"
    there.wait(0.2)
    assert patient in there.begun


def test_a_call_that_another_root_let_begin_holds_a_place() -> None:
    """Until its end is told. That says nothing of a breaker which did not see it begin, and pays the rate."""
    rig = Rig(max_concurrent=1, tokens_per_minute=600)
    rig.tickets = 1
    rig.step(CallFound(waiting=Waiting(ticket=1, session="A1", tree="A", model="m")))
    second = rig.ask()
    assert (rig.begun, rig.line.running, rig.line.waiting) == ([], 1, 1)
    for lane in rig.line.read(now_ns=0):
        assert (lane.running, lane.allowance) == (1, 1)
    rig.end(1, "overloaded", tokens=100)
    assert rig.begun == [second]
    (lane,) = rig.line.read(now_ns=0)
    assert (lane.calls, lane.failed_share) == (0, 0.0)
    rig.end(second)
    third = rig.ask(tokens=1)
    assert third not in rig.begun, "it has taken what the bucket held"
    rig.wait(60)
    assert third in rig.begun


def test_what_is_remembered_is_not_believed_beyond_measure() -> None:
    """A row that was damaged, or written with a clock of another century, closes no model for good."""
    rig = Rig(max_concurrent=4)
    snapshot = LaneSnapshot(
        breaker=BreakerSnapshot(is_open=True, left_ns=2**62, openings=-7, reason="why"),
        throttle=ThrottleSnapshot(pause_left_ns=-5, window=float("inf"), refusals=-7),
    )
    rig.line.take_over({"m": snapshot}, now_ns=0)
    assert rig.ask() in rig.refused
    rig.wait(BREAKER.max_open_s * 1.1 + 1)
    probe = rig.ask()
    assert probe in rig.begun
    rig.end(probe, "overloaded")
    assert rig.ask() in rig.refused, "it opens again, and for as long as a breaker does"
    rig.wait(BREAKER.max_open_s * 1.1 + 1)
    probe = rig.ask()
    rig.end(probe, "rate_limited")
    assert rig.begun[-1] == probe


def test_models_that_nothing_is_known_against_are_forgotten() -> None:
    """A provider with ever new model names costs no more than its bound."""
    rig = Rig()
    opened(rig, model="broken")
    for number in range(3 * MAX_LANES):
        rig.end(rig.ask(model=f"m{number}"))
    lanes = rig.line.read(now_ns=rig.now_ns)
    assert len(lanes) <= MAX_LANES
    assert "broken" in [lane.model for lane in lanes]


def test_a_reading_says_how_it_stands() -> None:
    """Who waits, how long the oldest has, and what the provider may be asked."""
    rig = Rig(max_concurrent=1)
    rig.ask("A1")
    rig.ask("B1")
    rig.wait(2)
    rig.ask("C1")
    (lane,) = rig.line.read(now_ns=rig.now_ns)
    assert (lane.state, lane.running, lane.allowance, lane.waiting) == ("closed", 1, 1, 2)
    assert (lane.oldest_wait_ns, lane.longest_wait_ns) == (2 * S, 2 * S)
    rig.end(rig.begun[0])
    rig.end(rig.begun[1])
    (lane,) = rig.line.read(now_ns=rig.now_ns)
    assert (lane.waiting, lane.oldest_wait_ns, lane.longest_wait_ns, lane.calls) == (0, 0, 2 * S, 2)


# ------------------------------------------------------------------ properties

PLACES = st.sampled_from(["A1", "A2", "A3", "B1", "B2", "C1"])
CODES = st.sampled_from(["", "", "", "", "rate_limited", "overloaded", "cut", "timeout", "auth", "lost"])


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.none() | st.integers(1, 300),
    st.lists(st.tuples(PLACES, CODES, st.integers(0, 20)), min_size=1, max_size=60),
)
def test_everyone_is_served_or_told_in_the_end(
    cap: int, per_minute: int | None, asked: list[tuple[str, str, int]]
) -> None:
    """With nothing but the clock and the ends of calls, each call begins or is refused, and the line is empty."""
    rig = Rig(max_concurrent=cap, requests_per_minute=per_minute)
    ends = {rig.ask(place): code for place, code, _ in asked}
    ended: set[int] = set()
    for _ in range(10 * len(asked) + 10):
        for ticket in [t for t in rig.begun if t not in ended]:
            ended.add(ticket)
            rig.end(ticket, ends[ticket])
        rig.wait(100)
    assert set(rig.begun) | set(rig.refused) == set(ends)
    assert (rig.line.running, rig.line.waiting, rig.line.due_ns) == (0, 0, None)


class LineMachine(RuleBasedStateMachine):
    """Everything at random; the bounds are recounted from what the line has said and nothing else."""

    @initialize(
        cap=st.integers(1, 6), calls=st.none() | st.integers(1, 200), tokens=st.none() | st.integers(60, 6000)
    )
    def begin(self, cap: int, calls: int | None, tokens: int | None) -> None:
        self.cap, self.calls, self.tokens = cap, calls, tokens
        self.rig = Rig(max_concurrent=cap, requests_per_minute=calls, tokens_per_minute=tokens)
        self.places: dict[int, tuple[str, str, int]] = {}
        self.running: set[int] = set()
        self.waiting: set[int] = set()
        self.began_at: list[tuple[int, int]] = []
        self.paused_until_ns: Counter[str] = Counter()
        self.state: dict[str, str] = {}
        self.seen = (0, 0, 0)

    def hear(self) -> None:
        """Takes what the line has said since the last time."""
        begun, refused, moves = self.seen
        for told in self.rig.moves[moves:]:
            assert self.state.get(told.model, "closed") == told.move.previous
            self.state[told.model] = told.move.state
        for ticket in self.rig.begun[begun:]:
            assert ticket in self.waiting, "a call began that did not wait"
            self.waiting.discard(ticket)
            self.running.add(ticket)
            _, model, tokens = self.places[ticket]
            assert self.rig.now_ns >= self.paused_until_ns[model], "a call began while the line was closed"
            assert self.state.get(model, "closed") != "open"
            self.began_at.append((self.rig.now_ns, tokens))
        for ticket in list(self.rig.refused)[refused:]:
            assert ticket in self.waiting
            self.waiting.discard(ticket)
        self.seen = len(self.rig.begun), len(self.rig.refused), len(self.rig.moves)

    @rule(place=PLACES, model=st.sampled_from("mn"), tokens=st.integers(0, 50), is_patient=st.booleans())
    def ask(self, place: str, model: str, tokens: int, is_patient: bool) -> None:
        ticket = self.rig.tickets + 1
        self.places[ticket] = place, model, tokens
        self.waiting.add(ticket)
        self.rig.ask(place, model=model, tokens=tokens, is_patient=is_patient)
        self.hear()

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000), code=CODES, after_s=st.none() | st.integers(0, 30))
    def end(self, which: int, code: str, after_s: int | None) -> None:
        ticket = sorted(self.running)[which % len(self.running)]
        self.running.discard(ticket)
        _, model, tokens = self.places[ticket]
        if code == "rate_limited" and after_s is not None:
            until_ns = self.rig.now_ns + after_s * S
            self.paused_until_ns[model] = max(self.paused_until_ns[model], until_ns)
        # It costs what was estimated: the bound on a minute is one of estimates.
        self.rig.end(ticket, code, retry_after_s=after_s, tokens=tokens)
        self.hear()

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 1000))
    def withdraw(self, which: int) -> None:
        ticket = sorted(self.waiting)[which % len(self.waiting)]
        self.waiting.discard(ticket)
        self.rig.step(CallWithdrawn(ticket=ticket))
        self.hear()

    @rule(ns=st.integers(0, 90 * S))
    def pass_time(self, ns: int) -> None:
        until_ns = self.rig.now_ns + ns
        while (due_ns := self.rig.line.due_ns) is not None and due_ns <= until_ns:
            self.rig.now_ns = due_ns
            self.rig.step(ClockLooked())
            self.hear()
        self.rig.now_ns = until_ns

    @invariant()
    def the_bounds_hold(self) -> None:
        """Of what runs at once, and of any minute."""
        assert len(self.running) <= self.cap
        assert (self.rig.line.running, self.rig.line.waiting) == (len(self.running), len(self.waiting))
        for start_ns, _ in self.began_at[-20:]:
            within = [tokens for at_ns, tokens in self.began_at if start_ns <= at_ns < start_ns + MINUTE_NS]
            assert self.calls is None or len(within) <= self.calls
            burst = max(1, (self.tokens or 0) // 6)
            assert self.tokens is None or sum(within) <= self.tokens + max(0, max(within) - burst)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """While calls wait, a call is on its way or the clock will let one in."""
        if self.waiting and not self.running:
            assert self.rig.line.due_ns is not None


TestLine = LineMachine.TestCase
TestLine.settings = hypothesis_settings(max_examples=80, stateful_step_count=50, deadline=None)
