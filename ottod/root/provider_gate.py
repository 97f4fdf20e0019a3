"""The gate before the providers: one for the daemon, so that all processes together keep to what a provider bears.

A worker asks for a permit before every attempt of a model call; here it waits for its turn in its provider's line,
and goes on to the next of its agent's models if a breaker is open. What the lines decide is `core/provider_line`;
this is their clock, their memory in the database, and their voice: a breaker's move is told in the session whose call
moved it, by that session's worker.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from ottod.core.fair_queue import Waiting
from ottod.core.fallback import may_reroute
from ottod.core.provider_line import (
    Begin,
    CallAsked,
    CallEnded,
    CallFound,
    CallWithdrawn,
    ClockLooked,
    LaneReading,
    LaneSnapshot,
    LineAction,
    LineEvent,
    ProviderLine,
    Refuse,
    TellMove,
)
from ottod.core.throttle import ThrottleSnapshot
from ottod.errors import UNDECODABLE, OttoError, ProviderError
from ottod.protocol.events import BreakerStateChanged
from ottod.protocol.results import ModelLine, ProviderLineInfo, ProviderList
from ottod.protocol.specs import ModelTarget
from ottod.protocol.worker_requests import AskPermit, Permit, SettlePermit
from ottod.root.context import RootContext
from ottod.root.session_table import Session
from ottod.settings.daemon import DaemonSettings
from ottod.settings.models import configured_models, providers
from ottod.settings.sections import ProviderSettings
from ottod.storage.provider_lanes import provider_lanes, put_provider_lane

FORGET_S = 900.0
"""After so long away nothing counts but an opening that still lasts: providers recover too."""
MAX_NEWS = 64
"""Moves that one session has to tell and has not come for; the oldest are only in the log."""
MAX_NEWS_SESSIONS = 1024
TOLD_AFTER_S = 1.0
"""A shorter wait is no news."""
ROUNDING_S = 0.001
"""A timer may fire so much early; looking too soon would only be repeated."""
UNKNOWN_PROVIDER = ProviderSettings()
"""For one that has left the configuration while sessions still use it."""


class KeptLane(msgspec.Struct, frozen=True, kw_only=True):
    """A model's snapshot as the database has it, with the wall clock of its making."""

    at_ns: int
    snapshot: LaneSnapshot


kept_lanes: msgspec.msgpack.Decoder[KeptLane] = msgspec.msgpack.Decoder(KeptLane)


class ProviderGate:
    """All providers' lines."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self._settings = providers(context.settings)
        self.named_models = configured_models(context.settings)
        """Provider and model of all that the configuration names."""
        self._lines: dict[str, ProviderLine] = {}
        self._next_ticket = 1
        self._waiting: dict[int, asyncio.Future[Begin | Refuse]] = {}
        self._standing: dict[str, tuple[str, int]] = {}
        """Session → the provider that its call waits for, and since when."""
        self._begun: dict[tuple[str, str], tuple[str, int]] = {}
        """Session and permit → provider and ticket."""
        self._news: dict[str, deque[BreakerStateChanged]] = {}
        self._kept: set[tuple[str, str]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.opened = 0
        """Times that a breaker opened."""

    # ------------------------------------------------------------ calls

    async def admit(self, session: Session, ask: AskPermit) -> Permit:
        """Waits until the attempt may be made; says with which of the models, and why it is another.

        Raises: ProviderError with code `breaker_open` if none of them can be asked now.
        """
        plan = session.plan
        assert plan is not None, "a session that calls has a plan"
        wanted = max(0, min(ask.target, len(plan.models) - 1))
        indices = range(wanted, len(plan.models) if may_reroute(plan.spec.fallback) else wanted + 1)
        has_others = any(resort != "model" for resort in plan.spec.fallback)
        refusals: list[tuple[ModelTarget, Refuse]] = []
        for index in indices:
            target = plan.models[index]
            is_patient = index == indices[-1] and not has_others
            answer = await self._stand_in_line(session, ask, target, is_patient=is_patient)
            if isinstance(answer, Begin):
                reason = _why(refusals)
                return Permit(permit=ask.permit, target=index, max_output_tokens=ask.max_output_tokens, reason=reason)
            refusals.append((target, answer))
        retry_after_s = min(refusal.retry_after_ns for _, refusal in refusals) / 1e9
        raise ProviderError(
            f"no call is made: {_why(refusals)}",
            code="breaker_open",
            retryable=True,
            retry_after_s=retry_after_s,
            mend="see `ottoctl providers`, and `fallback` in the agent's file",
        )

    async def _stand_in_line(
        self, session: Session, ask: AskPermit, target: ModelTarget, *, is_patient: bool
    ) -> Begin | Refuse:
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        future: asyncio.Future[Begin | Refuse] = self._c.loop.create_future()
        self._waiting[ticket] = future
        name = session.id, ask.permit
        waiting = Waiting(
            ticket=ticket,
            session=session.id,
            tree=self._tree(session),
            model=target.model,
            tokens=ask.input_tokens + ask.min_output_tokens,
            since_ns=self._now_ns(),
        )
        self._standing[session.id] = target.provider, waiting.since_ns
        self._step(target.provider, CallAsked(waiting=waiting, is_patient=is_patient))
        try:
            answer = await future
        except asyncio.CancelledError:
            self._abandon(target.provider, ticket, future)
            raise
        finally:
            self._waiting.pop(ticket, None)
            self._standing.pop(session.id, None)
        if isinstance(answer, Begin):
            self._begun[name] = target.provider, ticket
        return answer

    def _abandon(self, provider: str, ticket: int, future: asyncio.Future[Begin | Refuse]) -> None:
        """Nobody waits any more; the call may have been let in at the same moment."""
        has_begun = future.done() and not future.cancelled() and isinstance(future.result(), Begin)
        self._step(provider, CallEnded(ticket=ticket, code="unused") if has_begun else CallWithdrawn(ticket=ticket))

    def found(self, session: Session, permit: Permit) -> None:
        """An adopted worker may be making this call: it holds a place until its end is told.

        Its tokens count when it has ended, since those that it took were an earlier root's.
        """
        if session.plan is None or not 0 <= permit.target < len(session.plan.models):
            return
        target = session.plan.models[permit.target]
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        waiting = Waiting(
            ticket=ticket,
            session=session.id,
            tree=self._tree(session),
            model=target.model,
            since_ns=self._now_ns(),
        )
        self._begun[session.id, permit.permit] = target.provider, ticket
        self._step(target.provider, CallFound(waiting=waiting))

    def settled(self, session: Session, permit: Permit, settlement: SettlePermit) -> None:
        """What became of an attempt that was admitted or found."""
        provider, ticket = self._begun.pop((session.id, permit.permit), ("", 0))
        if not provider:
            return
        code = settlement.code or {"completed": "", "unused": "unused"}.get(settlement.outcome, "lost")
        usage = settlement.usage
        event = CallEnded(
            ticket=ticket,
            code=code,
            retry_after_s=settlement.retry_after_s,
            first_s=settlement.first_ms / 1000 if settlement.first_ms else None,
            tokens=usage.total_tokens if usage is not None else None,
        )
        self._step(provider, event)
        if code == "rate_limited" and session.plan is not None:
            self._keep(provider, session.plan.models[permit.target].model)

    def news(self, session: Session) -> tuple[BreakerStateChanged, ...]:
        """Breakers' moves that this session has caused and not told yet."""
        return tuple(self._news.pop(session.id, ()))

    def _tree(self, session: Session) -> str:
        """The top of the tree that the session is in."""
        while not session.is_top and (above := self._c.table.get(session.info.parent)) is not None:
            session = above
        return session.id

    # ------------------------------------------------------------ lines

    def _now_ns(self) -> int:
        return int(self._c.loop.time() * 1e9)

    def _line(self, provider: str) -> ProviderLine:
        line = self._lines.get(provider)
        if line is None:
            settings = self._settings.get(provider, UNKNOWN_PROVIDER)
            line = self._lines[provider] = ProviderLine(settings, now_ns=self._now_ns())
        return line

    def _step(self, provider: str, event: LineEvent) -> None:
        actions = self._line(provider).step(event, now_ns=self._now_ns(), random=self._c.random())
        self._perform(provider, actions)

    def _perform(self, provider: str, actions: Iterable[LineAction]) -> None:
        for action in actions:
            match action:
                case Begin() | Refuse():
                    future = self._waiting.get(action.ticket)
                    if future is not None and not future.done():
                        future.set_result(action)
                case TellMove():
                    self._tell(provider, action)
        self._set_timer()

    def _tell(self, provider: str, told: TellMove) -> None:
        move = told.move
        self.opened += move.state == "open"
        self._c.log(
            f"breaker of {provider}:{told.model}: {move.previous} → {move.state}: {move.reason}", session=told.session
        )
        if told.session:
            while len(self._news) >= MAX_NEWS_SESSIONS and told.session not in self._news:
                self._news.pop(next(iter(self._news)))
            news = self._news.setdefault(told.session, deque(maxlen=MAX_NEWS))
            news.append(
                BreakerStateChanged(
                    provider=provider,
                    model=told.model,
                    state=move.state,
                    previous=move.previous,
                    reason=move.reason,
                )
            )
        self._keep(provider, told.model)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dues = [line.due_ns for line in self._lines.values() if line.due_ns is not None]
        if dues and not self._is_closed:
            self._timer = self._c.loop.call_at(min(dues) / 1e9 + ROUNDING_S, self._look)

    def _look(self) -> None:
        self._timer = None
        for provider in list(self._lines):
            self._step(provider, ClockLooked())

    def configure(self, settings: DaemonSettings) -> None:
        """Takes new settings; they hold at once, for calls that wait too."""
        self._settings = providers(settings)
        self.named_models = configured_models(settings)
        for provider, line in self._lines.items():
            new = self._settings.get(provider, UNKNOWN_PROVIDER)
            if new != line.settings:
                self._perform(provider, line.configure(new, now_ns=self._now_ns(), random=self._c.random()))

    def close(self) -> None:
        """Lets nobody in any more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------ across roots

    def _keep(self, provider: str, model: str) -> None:
        snapshot = self._line(provider).snapshot(model, now_ns=self._now_ns())
        key = provider, model
        if snapshot != LaneSnapshot():
            self._kept.add(key)
            data = msgspec.msgpack.encode(KeptLane(at_ns=time.time_ns(), snapshot=snapshot))
        elif key in self._kept:
            self._kept.discard(key)
            data = b""
        else:
            return
        self._c.spawn(self._write(provider, model, data))

    async def _write(self, provider: str, model: str, data: bytes) -> None:
        try:
            await put_provider_lane(self._c.database, provider, model, data)
        except OttoError as error:
            self._c.log(f"breaker of {provider}:{model}: {error}")

    async def restore(self) -> None:
        """Takes over what an earlier root has left. Raises StorageError."""
        now_ns = self._now_ns()
        for (provider, model), data in (await provider_lanes(self._c.database)).items():
            self._kept.add((provider, model))
            try:
                snapshot = _aged(kept_lanes.decode(data))
            except UNDECODABLE as error:
                self._c.log(f"breaker of {provider}:{model}: unreadable, it begins closed: {error}")
                snapshot = LaneSnapshot()
            if snapshot == LaneSnapshot():
                self._keep(provider, model)
            else:
                self._line(provider).take_over({model: snapshot}, now_ns=now_ns)

    # ------------------------------------------------------------ readings

    def wait_of(self, session_id: str) -> str:
        """What the session's model call waits for, once that has become worth a word; else empty."""
        provider, since_ns = self._standing.get(session_id, ("", 0))
        waited_s = (self._now_ns() - since_ns) / 1e9
        if not provider or waited_s < TOLD_AFTER_S:
            return ""
        return f"its model call has waited for its turn at {provider} for {waited_s:.0f} s"

    def read(self) -> ProviderList:
        """How it stands with every provider that was asked for anything."""
        now_ns, wall_ns = self._now_ns(), time.time_ns()
        found = []
        for name, line in sorted(self._lines.items()):
            settings = line.settings
            lanes = line.read(now_ns=now_ns)
            found.append(
                ProviderLineInfo(
                    provider=name,
                    running=line.running,
                    waiting=line.waiting,
                    max_concurrent=settings.max_concurrent,
                    requests_per_minute=settings.requests_per_minute,
                    tokens_per_minute=settings.tokens_per_minute,
                    models=tuple(_shown(lane, wall_ns) for lane in lanes),
                )
            )
        return ProviderList(providers=tuple(found))


def _why(refusals: list[tuple[ModelTarget, Refuse]]) -> str:
    """`anthropic:opus is broken (50% of 10 calls failed)`, of all that were refused."""
    return "; ".join(
        f"the breaker of {target.provider}:{target.model} is "
        + ("open" if refusal.retry_after_ns else "half-open")
        + (f" ({refusal.reason})" if refusal.reason else "")
        for target, refusal in refusals
    )


def _aged(kept: KeptLane) -> LaneSnapshot:
    """A snapshot as it is now, by the wall clock."""
    away_ns = max(0, time.time_ns() - kept.at_ns)
    breaker, throttle = kept.snapshot.breaker, kept.snapshot.throttle
    breaker = replace(breaker, left_ns=max(0, breaker.left_ns - away_ns))
    throttle = replace(throttle, pause_left_ns=max(0, throttle.pause_left_ns - away_ns))
    if away_ns > FORGET_S * 1e9:
        throttle = ThrottleSnapshot(pause_left_ns=throttle.pause_left_ns)
        breaker = breaker if breaker.is_open else replace(breaker, openings=0)
    return LaneSnapshot(breaker=breaker, throttle=throttle)


def _shown(lane: LaneReading, wall_ns: int) -> ModelLine:
    return ModelLine(
        model=lane.model,
        breaker=lane.state,
        reason=lane.reason,
        open_until_ns=wall_ns + lane.open_left_ns if lane.open_left_ns else 0,
        paused_until_ns=wall_ns + lane.pause_left_ns if lane.pause_left_ns else 0,
        calls=lane.calls,
        failed_share=round(lane.failed_share, 4),
        slow_share=round(lane.slow_share, 4),
        running=lane.running,
        allowance=lane.allowance,
        waiting=lane.waiting,
        oldest_wait_ms=lane.oldest_wait_ns // 1_000_000,
        longest_wait_ms=lane.longest_wait_ns // 1_000_000,
    )
