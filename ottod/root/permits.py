"""Permits: no model call is made without one, and each is settled once.

Two things stand before a permit. The *admission* says when an attempt may be made and with which model; it may let it
wait. The *reservation* takes the most that the attempt can consume out of every budget above it (see `budgets`), and
is in the database before the worker hears of it. What was consumed in truth replaces it when the worker says so, and
is booked in the ledger.

A permit outlives its worker: what a dead one has not told, the session's next worker tells, from its journal. Until
then everything that was reserved stays so, and if the session ends without a word, all of it was spent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from ottod.core.budget import NOTHING, Amount, NearlyUsed
from ottod.errors import OttoError, RefusedError
from ottod.protocol.usage import MAX_CALL_TOKENS, MAX_CALL_USD_MICROS, TOKEN_COUNTS, Usage
from ottod.protocol.worker_requests import AskPermit, Permit, RequestReply, SettlePermit
from ottod.root.budget_refusals import OverBudget
from ottod.root.budgets import Budgets
from ottod.root.context import RootContext
from ottod.root.session_table import Incarnation, Session
from ottod.storage.ledger import Ledger, LedgerEntry, PermitRow

BOOK_ATTEMPTS = 30
BOOK_AGAIN_S = 1.0
"""Between two attempts to write what was consumed, when the disk is full, say."""
LOST = "lost"
"""The code of an attempt whose worker died."""

Name = tuple[str, str]
"""Session and permit."""


class Admission(Protocol):
    """What stands before the reservation: rates, breakers, a queue, another model than the one asked for."""

    async def admit(self, session: Session, ask: AskPermit) -> Permit:
        """Waits until the attempt may be made; says with which of the models. Its output may only be lowered.

        Cancelled when nobody waits for it any more. Raises RefusedError, or ProviderError if it cannot be made now.
        """
        ...

    def found(self, session: Session, permit: Permit) -> None:
        """An earlier root had admitted this attempt, and its worker lives: it may be on its way."""
        ...

    def settled(self, session: Session, permit: Permit, settlement: SettlePermit) -> None:
        """What became of an attempt that was admitted or found, told once for each.

        Also if it was never made (`unused`: no budget has room for it, or nobody waits any more), or if its worker
        died (`unknown`, with code `lost`).
        """
        ...


class OpenAdmission:
    """Lets everything pass, with the model that was asked for."""

    async def admit(self, session: Session, ask: AskPermit) -> Permit:
        return Permit(permit=ask.permit, target=ask.target, max_output_tokens=ask.max_output_tokens)

    def found(self, session: Session, permit: Permit) -> None:
        pass

    def settled(self, session: Session, permit: Permit, settlement: SettlePermit) -> None:
        pass


class _Open(NamedTuple):
    """A permit that was given, and its row."""

    permit: Permit
    row: PermitRow
    is_orphan: bool = False
    """Its worker is dead: the admission has been told, and the next worker has not."""


class Permits:
    """All permits of this root."""

    def __init__(self, context: RootContext, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._c = context
        self._now_ns = now_ns
        self.ledger = Ledger(context.database)
        self.budgets = Budgets(context, self.ledger, now_ns=now_ns)
        self.admission: Admission = OpenAdmission()
        self._asking: dict[Name, asyncio.Task[Permit]] = {}
        self._withdrawn: set[Name] = set()
        """Asked for, and told to be of no use any more before there was an answer."""
        self._open: dict[Name, _Open] = {}

    @property
    def waiting_count(self) -> int:
        """Attempts that wait to be admitted."""
        return len(self._asking)

    @property
    def open_count(self) -> int:
        """Permits whose calls may be on their way."""
        return len(self._open)

    # ------------------------------------------------------------ asking

    async def ask(self, session: Session, incarnation: Incarnation, ask: AskPermit) -> RequestReply:
        """A permit for an attempt, once it may be made. Raises RefusedError, StorageError."""
        name = session.id, ask.permit
        if (known := self._open.get(name)) is not None:
            return RequestReply(id=0, permit=known.permit)
        if name in self._asking:
            raise RefusedError(f"{ask.permit} is asked for already", code="too_many_requests")
        try:
            permit = await self._admitted(session, incarnation, ask)
            permit = await self._reserved(session, incarnation, ask, permit)
        except OverBudget as error:
            self._c.instruments.permit_refused()
            warnings = self.budgets.warnings(session, ())
            return RequestReply(id=0, failure=error.failure(), refusal=error.refusal, warnings=warnings)
        except RefusedError:
            self._c.instruments.permit_refused()
            raise
        self._c.instruments.permit_granted()
        return RequestReply(id=0, permit=permit, warnings=self.budgets.warnings(session, ()))

    async def _admitted(self, session: Session, incarnation: Incarnation, ask: AskPermit) -> Permit:
        name = session.id, ask.permit
        task = self._asking[name] = asyncio.ensure_future(self.admission.admit(session, ask))
        try:
            permit = await task
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise RefusedError("nobody waits for it any more", code="withdrawn") from None
        finally:
            self._asking.pop(name, None)
            is_withdrawn = name in self._withdrawn
            self._withdrawn.discard(name)
        if is_withdrawn or incarnation.is_over or session.has_ended:
            self.admission.settled(session, permit, SettlePermit(permit=ask.permit, outcome="unused"))
            raise RefusedError("nobody waits for it any more", code="withdrawn")
        return permit

    async def _reserved(self, session: Session, incarnation: Incarnation, ask: AskPermit, admitted: Permit) -> Permit:
        name = session.id, ask.permit
        try:
            permit, row = self.budgets.reserve(session, ask, admitted)
        except BaseException:
            self.admission.settled(session, admitted, SettlePermit(permit=ask.permit, outcome="unused"))
            raise
        self._open[name] = _Open(permit, row)
        try:
            await self.budgets.store(row)
        except OttoError:
            if name in self._open:
                self._close(session, SettlePermit(permit=ask.permit, outcome="unused"))
            raise
        if incarnation.is_over or name not in self._open:
            # Its next worker, if it has one, knows nothing of it.
            await self.settle(session, SettlePermit(permit=ask.permit, outcome="unused"))
            raise RefusedError("nobody waits for it any more", code="withdrawn")
        return permit

    # ------------------------------------------------------------ settling

    async def settle(self, session: Session, settlement: SettlePermit) -> RequestReply:
        """What became of an attempt; returns when it is booked. Told again, it counts once."""
        name = session.id, settlement.permit
        if (task := self._asking.get(name)) is not None:
            self._withdrawn.add(name)
            task.cancel()
        if name in self._open:
            closed = self._close(session, settlement)
            await self._book(closed)
            return RequestReply(id=0, warnings=self.budgets.warnings(session, closed.due))
        entry = self._entry(session, settlement, None)
        if entry is None:
            return RequestReply(id=0)
        # Told again; or its row was lost with the power, and this is all that there is of it.
        booked = await self._book(_Closed(name, entry, self.budgets.path(session.id), []))
        amount = _amount(entry)
        due = self.budgets.settle(session.id, settlement.permit, amount, is_reserved=False) if booked else []
        return RequestReply(id=0, warnings=self.budgets.warnings(session, due))

    def _close(self, session: Session, settlement: SettlePermit) -> _Closed:
        """The reservation becomes what was consumed, and the admission hears of it."""
        name = session.id, settlement.permit
        known = self._open.pop(name)
        if not known.is_orphan:
            self.admission.settled(session, known.permit, settlement)
        entry = self._entry(session, settlement, known.row)
        path = self.budgets.path(session.id)
        amount = NOTHING if entry is None else _amount(entry)
        due = self.budgets.settle(session.id, settlement.permit, amount, is_reserved=True)
        if entry is not None:
            # A script's name is its path, which is no label.
            label = entry.provider if entry.model.startswith("/") else f"{entry.provider}:{entry.model}"
            self._c.instruments.model_called(label, entry.usage)
            self._note_overshoot(known.row, amount)
        return _Closed(name, entry, path, due)

    def _entry(self, session: Session, settlement: SettlePermit, row: PermitRow | None) -> LedgerEntry | None:
        """The ledger's line; None if nothing was consumed, or nobody can know it any more."""
        if settlement.outcome == "completed" and settlement.usage is not None:
            usage, is_presumed = _plausible(settlement.usage), False
            if usage.usd_micros is None and row is not None:
                # Its most was known, so it is that.
                usage = replace(usage, usd_micros=row.usd_micros)
        elif settlement.outcome in ("completed", "unknown") and row is not None:
            usage, is_presumed = presumed(row), True
        else:
            return None
        models = session.plan.models if session.plan is not None else ()
        target = models[settlement.target] if 0 <= settlement.target < len(models) else None
        return LedgerEntry(
            session=session.id,
            at_ns=self._now_ns(),
            agent=session.info.agent,
            provider=row.provider if row is not None else target.provider if target is not None else "",
            model=row.model if row is not None else target.model if target is not None else "",
            permit=settlement.permit,
            usage=usage,
            is_presumed=is_presumed,
        )

    def _note_overshoot(self, row: PermitRow, consumed: Amount) -> None:
        reserved = Amount(tokens=row.input_tokens + row.max_output_tokens, usd_micros=row.usd_micros or 0)
        if (over := consumed.beyond(reserved)) != NOTHING:
            self._c.instruments.budget_overshot(over.tokens, over.usd_micros)
            self._c.log(
                f"{row.provider}:{row.model} counted {over.tokens} tokens ({over.usd_micros} millionths of a dollar)"
                " more than was reserved for the call",
                session=row.session,
            )

    async def _book(self, closed: _Closed) -> bool:
        """Writes it. What cannot be written now is tried again for a while; after that the permit's row stands.

        False if it was booked before, or cannot be.
        """
        session_id, permit = closed.name
        for attempt in range(BOOK_ATTEMPTS):
            try:
                return await self.ledger.settle(session_id, permit, closed.entry, closed.path)
            except OttoError as error:
                if attempt == 0:
                    self._c.log(f"the ledger: {error}", session=session_id)
            await asyncio.sleep(BOOK_AGAIN_S)
        return False

    # ------------------------------------------------------------ workers and sessions

    def open_names(self, session_id: str) -> tuple[str, ...]:
        """The session's permits that are open: its next worker tells what became of them."""
        return tuple(permit for owner, permit in self._open if owner == session_id)

    def worker_gone(self, session: Session) -> None:
        """Its worker is dead: it waits for nothing any more, and its calls are over."""
        for (owner, _), task in list(self._asking.items()):
            if owner == session.id:
                task.cancel()
        for permit in self.open_names(session.id):
            known = self._open[session.id, permit]
            if not known.is_orphan:
                self._open[session.id, permit] = known._replace(is_orphan=True)
                self.admission.settled(session, known.permit, _lost(permit))

    def ended(self, session: Session) -> None:
        """It has ended: what nobody has told by now was spent, all of it."""
        for permit in self.open_names(session.id):
            self._c.spawn(self._book_quietly(self._close(session, _lost(permit))))
        self.budgets.ended(session)

    async def _book_quietly(self, closed: _Closed) -> None:
        await self._book(closed)

    async def restore(self) -> None:
        """What an earlier root had given. Raises StorageError.

        A worker that lives still tells of its permits, the next one of those of a dead one.
        """
        for row in await self.budgets.restore():
            permit = Permit(
                permit=row.permit, target=row.target, max_output_tokens=row.max_output_tokens, is_last=row.is_last
            )
            session = self._c.table.get(row.session)
            is_adopted = session is not None and not session.has_ended and session.incarnation is not None
            self._open[row.session, row.permit] = _Open(permit, row, is_orphan=not is_adopted)
            if session is not None and is_adopted:
                self.admission.found(session, permit)
        for session_id in {owner for owner, _ in self._open}:
            if (owning := self._c.table.get(session_id)) is None or owning.has_ended:
                await self._settle_unheard(session_id)

    async def _settle_unheard(self, session_id: str) -> None:
        """The session has ended, and the root before did not come to book this."""
        for permit in self.open_names(session_id):
            row = self._open.pop((session_id, permit)).row
            entry = LedgerEntry(
                session=session_id,
                at_ns=row.at_ns,
                agent=row.agent,
                provider=row.provider,
                model=row.model,
                permit=permit,
                usage=presumed(row),
                is_presumed=True,
            )
            path = self.budgets.path(session_id)
            self.budgets.settle(session_id, permit, _amount(entry), is_reserved=True)
            await self._book(_Closed((session_id, permit), entry, path, []))
        await self.budgets.forget(session_id)

    def close(self) -> None:
        """Root goes; what waits is asked for again of the next one."""
        self.budgets.close()
        for task in self._asking.values():
            task.cancel()


class _Closed(NamedTuple):
    """A permit that is over: what is to be booked of it, and where it counts."""

    name: Name
    entry: LedgerEntry | None
    path: list[str]
    due: list[NearlyUsed]


def presumed(row: PermitRow) -> Usage:
    """The most that an attempt can have consumed."""
    return Usage(
        input_tokens=row.input_tokens, output_tokens=row.max_output_tokens, usd_micros=row.usd_micros, calls=1
    )


def _plausible(usage: Usage) -> Usage:
    """One call's consumption as a worker tells it, within what a call can have consumed.

    Books whose sums no database holds would keep the next root from its start.
    """
    tokens = {name: min(max(0, getattr(usage, name)), MAX_CALL_TOKENS) for name in TOKEN_COUNTS}
    micros = usage.usd_micros
    return Usage(**tokens, usd_micros=None if micros is None else min(max(0, micros), MAX_CALL_USD_MICROS), calls=1)


def _amount(entry: LedgerEntry) -> Amount:
    return Amount(tokens=entry.usage.total_tokens, usd_micros=entry.usage.usd_micros or 0)


def _lost(permit: str) -> SettlePermit:
    return SettlePermit(permit=permit, outcome="unknown", code=LOST)
