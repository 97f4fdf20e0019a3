"""The line before one provider: which call may be made now, which waits, and which is not worth waiting for.

Theory of operation. A call that is asked for joins the fair queue. It begins when there is room for it: in the
provider's concurrency, in its rates of calls and tokens, and with its model, which may be paused or slowed down after
a refusal (`throttle`) or tried by a few calls only (`breaker`). Calls for a model that has no room are passed over;
rates hold for all alike, so nobody overtakes a call that waits for its turn in them, however dear it is.

A model whose breaker is open refuses whoever asks and whoever waits. While probes try it, a call that has somewhere
else to go is refused as well, and one that has not waits for what the probes find.

A begun call holds its place until it has ended, and nothing else does: a session that waits for its children or for
its tools holds none, so there is no circle of sessions that wait for each other here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import msgspec

from ottod.core.breaker import Breaker, BreakerSnapshot, BreakerState, Leave, Move, verdict
from ottod.core.fair_queue import FairQueue, Waiting
from ottod.core.rate_limit import TokenBucket
from ottod.core.throttle import Throttle, ThrottleSnapshot
from ottod.settings.sections import ProviderSettings

MAX_LANES = 256
"""Models of one provider that are told apart at once; beyond it those are forgotten that nothing is known against."""
UNCOUNTED = frozenset({"unused", "rate_limited", "connection", "auth", "bad_request", "context_too_long"})
"""Failures of calls that the provider did not work on: their tokens come back."""


UNKNOWN_LEAVE = Leave(era=-1)
"""Of a call that this line has not seen begin: it says nothing of the breaker's present."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """The form that events, actions and readings share."""


# ------------------------------------------------------------------ events


class CallAsked(Value, frozen=True, kw_only=True, tag=True):
    """A session wants to make a call. `is_patient`: it has nowhere else to go."""

    waiting: Waiting
    is_patient: bool = True


class CallWithdrawn(Value, frozen=True, kw_only=True, tag=True):
    """Nobody waits for this call any more. One that has begun has to end instead."""

    ticket: int


class CallEnded(Value, frozen=True, kw_only=True, tag=True):
    """A begun call is over. `code` is empty for an answer, else the failure's; `lost` when nobody can say.

    `tokens` is what it consumed, if that is known; `first_s` is how long it took until the answer began.
    """

    ticket: int
    code: str = ""
    retry_after_s: float | None = None
    first_s: float | None = None
    tokens: int | None = None


class ClockLooked(Value, frozen=True, kw_only=True, tag=True):
    """Time has passed."""


class CallFound(Value, frozen=True, kw_only=True, tag=True):
    """A call runs that another root let begin. It holds a place like any other; its beginning was weighed there."""

    waiting: Waiting


LineEvent = CallAsked | CallWithdrawn | CallEnded | CallFound | ClockLooked

# ------------------------------------------------------------------ actions


class Begin(Value, frozen=True, kw_only=True, tag=True):
    """The call may be made, and holds its place until it has ended."""

    ticket: int
    waited_ns: int = 0


class Refuse(Value, frozen=True, kw_only=True, tag=True):
    """The call is not worth waiting for: the model's breaker is open, or tries with others."""

    ticket: int
    reason: str
    retry_after_ns: int


class TellMove(Value, frozen=True, kw_only=True, tag=True):
    """A breaker moved. `session` is the one whose call moved it; empty when the settings did."""

    model: str
    session: str
    move: Move


LineAction = Begin | Refuse | TellMove

# ------------------------------------------------------------------ readings


class LaneReading(Value, frozen=True, kw_only=True):
    """How it stands with one model. Times are nanoseconds from now."""

    model: str
    state: BreakerState
    reason: str
    open_left_ns: int
    calls: int
    failed_share: float
    slow_share: float
    running: int
    allowance: int
    pause_left_ns: int
    waiting: int
    oldest_wait_ns: int
    longest_wait_ns: int
    """Of all calls that have begun since the line was made, and of those that wait."""


class LaneSnapshot(Value, frozen=True, kw_only=True):
    """What another root can take over."""

    breaker: BreakerSnapshot = BreakerSnapshot()
    throttle: ThrottleSnapshot = ThrottleSnapshot()


class _Running(Value, frozen=True, kw_only=True):
    """A call that has begun."""

    waiting: Waiting
    leave: Leave
    began_ns: int


class _Lane:
    """One model."""

    def __init__(self, settings: ProviderSettings) -> None:
        self.breaker = Breaker(settings.breaker)
        self.throttle = Throttle(max_concurrent=settings.max_concurrent)
        self.running = 0
        self.waiting = 0
        self.longest_wait_ns = 0

    def has_room(self, now_ns: int) -> bool:
        return (
            self.running < self.throttle.allowance
            and now_ns >= self.throttle.paused_until_ns
            and self.breaker.admits(now_ns=now_ns)
        )

    def is_plain(self, now_ns: int) -> bool:
        """Whether nothing is lost when it is forgotten."""
        is_busy = self.running or self.waiting or self.breaker.state != "closed"
        return not (is_busy or self.throttle.is_slowed or now_ns < self.throttle.paused_until_ns)


class ProviderLine:
    """One provider's calls, of all sessions. Times are monotonic nanoseconds."""

    def __init__(self, settings: ProviderSettings, *, now_ns: int) -> None:
        self.settings = settings
        self._queue = FairQueue()
        self._running: dict[int, _Running] = {}
        self._lanes: dict[str, _Lane] = {}
        self._calls = _calls_bucket(settings, now_ns)
        self._tokens = _tokens_bucket(settings, now_ns)
        self._due_at_ns: int | None = None

    @property
    def running(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def step(self, event: LineEvent, *, now_ns: int, random: float) -> list[LineAction]:
        """Takes one event and gives the orders that follow. `random` is uniform in [0, 1)."""
        match event:
            case CallAsked():
                actions = self._ask(event, now_ns)
            case CallWithdrawn():
                actions = self._withdraw(event.ticket)
            case CallEnded():
                actions = self._end(event, now_ns, random)
            case CallFound():
                actions = self._find(event.waiting, now_ns)
            case ClockLooked():
                actions = []
            case _:
                assert_never(event)
        return actions + self._serve(now_ns)

    @property
    def due_ns(self) -> int | None:
        """When the clock alone may let a call begin; None if only another event can. It holds until the next event,
        also when it has passed: whoever is late to look still has to."""
        return self._due_at_ns

    # ------------------------------------------------------------ events

    def _ask(self, event: CallAsked, now_ns: int) -> list[LineAction]:
        waiting = event.waiting
        breaker = self._lane(waiting.model, now_ns).breaker
        is_vain = breaker.refuses(now_ns=now_ns)
        if is_vain or (not event.is_patient and not breaker.admits(now_ns=now_ns)):
            return [self._refusal(waiting, breaker, now_ns)]
        self._lanes[waiting.model].waiting += 1
        self._queue.push(waiting)
        return []

    def _withdraw(self, ticket: int) -> list[LineAction]:
        dropped = self._queue.drop(ticket)
        if dropped is not None:
            self._lanes[dropped.model].waiting -= 1
        return []

    def _find(self, waiting: Waiting, now_ns: int) -> list[LineAction]:
        self._lane(waiting.model, now_ns).running += 1
        self._running[waiting.ticket] = _Running(waiting=waiting, leave=UNKNOWN_LEAVE, began_ns=now_ns)
        return []

    def _end(self, event: CallEnded, now_ns: int, random: float) -> list[LineAction]:
        call = self._running.pop(event.ticket, None)
        if call is None:
            return []
        waiting, lane = call.waiting, self._lanes[call.waiting.model]
        if self._tokens is not None:
            cost = _cost(event, waiting.tokens)
            self._tokens.settle(taken=waiting.tokens, cost=cost, now_ns=now_ns)
        if event.code == "rate_limited":
            lane.throttle.refused(
                began_ns=call.began_ns,
                running=lane.running,
                retry_after_s=event.retry_after_s,
                now_ns=now_ns,
                random=random,
            )
        elif not event.code:
            lane.throttle.answered(began_ns=call.began_ns)
        lane.running -= 1
        move = lane.breaker.end(
            call.leave,
            verdict(event.code),
            first_s=event.first_s,
            tokens=event.tokens or 0,
            now_ns=now_ns,
            random=random,
        )
        if move is None:
            return []
        return [
            TellMove(model=waiting.model, session=waiting.session, move=move),
            *self._turn_away(waiting.model, now_ns),
        ]

    def _turn_away(self, model: str, now_ns: int) -> list[LineAction]:
        """Refuses all that wait for a model that has just opened its breaker."""
        lane = self._lanes[model]
        if not lane.waiting or not lane.breaker.refuses(now_ns=now_ns):
            return []
        waiting = [w for w in self._queue if w.model == model]
        for call in waiting:
            self._queue.drop(call.ticket)
        lane.waiting = 0
        return [self._refusal(call, lane.breaker, now_ns) for call in waiting]

    @staticmethod
    def _refusal(waiting: Waiting, breaker: Breaker, now_ns: int) -> Refuse:
        left_ns = breaker.open_until_ns - now_ns if breaker.refuses(now_ns=now_ns) else 0
        return Refuse(ticket=waiting.ticket, reason=breaker.reason, retry_after_ns=left_ns)

    # ------------------------------------------------------------ serving

    def _serve(self, now_ns: int) -> list[LineAction]:
        actions: list[LineAction] = []
        self._due_at_ns = None
        while self._queue and len(self._running) < self.settings.max_concurrent:
            waiting = self._queue.first(lambda w: self._lanes[w.model].has_room(now_ns))
            if waiting is None:
                pauses = [lane.throttle.paused_until_ns for lane in self._lanes.values() if lane.waiting]
                self._due_at_ns = min((until_ns for until_ns in pauses if until_ns > now_ns), default=None)
                break
            due_ns = self._due_ns(waiting, now_ns)
            if due_ns > now_ns:
                self._due_at_ns = due_ns
                break
            actions += self._begin(waiting, now_ns)
        return actions

    def _due_ns(self, waiting: Waiting, now_ns: int) -> int:
        due_ns = now_ns
        if self._calls is not None:
            due_ns = max(due_ns, self._calls.due_ns(1, now_ns=now_ns))
        if self._tokens is not None:
            due_ns = max(due_ns, self._tokens.due_ns(waiting.tokens, now_ns=now_ns))
        return due_ns

    def _begin(self, waiting: Waiting, now_ns: int) -> list[LineAction]:
        self._queue.serve(waiting.ticket)
        lane = self._lanes[waiting.model]
        if self._calls is not None:
            self._calls.take(1, now_ns=now_ns)
        if self._tokens is not None:
            self._tokens.take(waiting.tokens, now_ns=now_ns)
        lane.waiting -= 1
        lane.running += 1
        waited_ns = now_ns - waiting.since_ns
        lane.longest_wait_ns = max(lane.longest_wait_ns, waited_ns)
        leave = lane.breaker.begin(now_ns=now_ns)
        self._running[waiting.ticket] = _Running(waiting=waiting, leave=leave, began_ns=now_ns)
        begin = Begin(ticket=waiting.ticket, waited_ns=waited_ns)
        if leave.move is None:
            return [begin]
        return [TellMove(model=waiting.model, session=waiting.session, move=leave.move), begin]

    def _lane(self, model: str, now_ns: int) -> _Lane:
        lane = self._lanes.get(model)
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                plain = [name for name, known in self._lanes.items() if known.is_plain(now_ns)]
                for name in plain:
                    del self._lanes[name]
            lane = self._lanes[model] = _Lane(self.settings)
        return lane

    # ------------------------------------------------------------ settings, readings, other roots

    def configure(self, settings: ProviderSettings, *, now_ns: int, random: float) -> list[LineAction]:
        """Takes new settings. What runs goes on, also above a lower cap; a new rate begins with a full burst."""
        before, self.settings = self.settings, settings
        if before.requests_per_minute != settings.requests_per_minute:
            self._calls = _calls_bucket(settings, now_ns)
        if before.tokens_per_minute != settings.tokens_per_minute:
            self._tokens = _tokens_bucket(settings, now_ns)
        actions: list[LineAction] = []
        for model, lane in self._lanes.items():
            lane.throttle.max_concurrent = settings.max_concurrent
            move = lane.breaker.configure(settings.breaker)
            if move is not None:
                actions.append(TellMove(model=model, session="", move=move))
        return actions + self._serve(now_ns)

    def read(self, *, now_ns: int) -> list[LaneReading]:
        """How it stands with each model that is known, by name."""
        oldest: dict[str, int] = {}
        for waiting in self._queue:
            oldest.setdefault(waiting.model, waiting.since_ns)
        return [self._read(model, lane, oldest.get(model), now_ns) for model, lane in sorted(self._lanes.items())]

    @staticmethod
    def _read(model: str, lane: _Lane, oldest_ns: int | None, now_ns: int) -> LaneReading:
        breaker, throttle = lane.breaker, lane.throttle
        calls, failed, slow = breaker.rates(now_ns=now_ns)
        oldest_wait_ns = 0 if oldest_ns is None else now_ns - oldest_ns
        return LaneReading(
            model=model,
            state=breaker.state,
            reason=breaker.reason if breaker.state != "closed" else "",
            open_left_ns=max(0, breaker.open_until_ns - now_ns) if breaker.state == "open" else 0,
            calls=calls,
            failed_share=failed,
            slow_share=slow,
            running=lane.running,
            allowance=throttle.allowance,
            pause_left_ns=max(0, throttle.paused_until_ns - now_ns),
            waiting=lane.waiting,
            oldest_wait_ns=oldest_wait_ns,
            longest_wait_ns=max(lane.longest_wait_ns, oldest_wait_ns),
        )

    def snapshot(self, model: str, *, now_ns: int) -> LaneSnapshot:
        """What is to be remembered of a model; the same as of one never seen, if that is nothing."""
        lane = self._lanes.get(model)
        if lane is None:
            return LaneSnapshot()
        return LaneSnapshot(
            breaker=lane.breaker.snapshot(now_ns=now_ns), throttle=lane.throttle.snapshot(now_ns=now_ns)
        )

    def take_over(self, lanes: Mapping[str, LaneSnapshot], *, now_ns: int) -> None:
        """Goes on where another root left off."""
        for model, snapshot in lanes.items():
            lane = self._lane(model, now_ns)
            lane.breaker.take_over(snapshot.breaker, now_ns=now_ns)
            lane.throttle.take_over(snapshot.throttle, now_ns=now_ns)


def _cost(event: CallEnded, taken: int) -> int:
    if event.tokens is not None:
        return event.tokens
    return 0 if event.code in UNCOUNTED else taken


def _calls_bucket(settings: ProviderSettings, now_ns: int) -> TokenBucket | None:
    limit = settings.requests_per_minute
    return None if limit is None else TokenBucket.of_requests(limit, now_ns=now_ns)


def _tokens_bucket(settings: ProviderSettings, now_ns: int) -> TokenBucket | None:
    limit = settings.tokens_per_minute
    return None if limit is None else TokenBucket.of_tokens(limit, now_ns=now_ns)
