"""Permits: no model call is made without one, and each is settled.

Two things stand before a permit. The *admission* says when an attempt may be made and with which model; it may let it
wait. The *reservation* takes the most that the attempt can cost out of every budget above it. What the attempt cost
in truth replaces the reservation when its worker says so.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ottod.errors import RefusedError
from ottod.protocol.worker import AskPermit, Permit, RequestReply, SettlePermit
from ottod.root.context import RootContext
from ottod.root.session_table import Incarnation, Session


class Admission(Protocol):
    """What stands before the reservation: rates, breakers, a queue, another model than the one asked for."""

    async def admit(self, session: Session, ask: AskPermit) -> Permit:
        """Waits until the attempt may be made; says with which of the models. Its output may only be lowered.

        Cancelled when nobody waits for it any more. Raises RefusedError.
        """
        ...

    def settled(self, session: Session, permit: Permit, settlement: SettlePermit) -> None:
        """What became of an attempt that was admitted: told once, also if it was never made (`unused`) or its
        worker died (`unknown`, code `lost`)."""
        ...


class OpenAdmission:
    """Lets everything pass, with the model that was asked for."""

    async def admit(self, session: Session, ask: AskPermit) -> Permit:
        return Permit(permit=ask.permit, target=ask.target, max_output_tokens=ask.max_output_tokens)

    def settled(self, session: Session, permit: Permit, settlement: SettlePermit) -> None:
        pass


class Permits:
    """All permits of this root."""

    def __init__(self, context: RootContext) -> None:
        self._c = context
        self.admission: Admission = OpenAdmission()
        self._asking: dict[tuple[str, str], asyncio.Task[Permit]] = {}
        self._open: dict[tuple[str, str], Permit] = {}
        self._withdrawn: set[tuple[str, str]] = set()
        """Asked for, and told to be of no use any more before there was an answer."""

    async def ask(self, session: Session, incarnation: Incarnation, ask: AskPermit) -> RequestReply:
        """A permit for an attempt, once it may be made. Raises RefusedError."""
        name = session.id, ask.permit
        if (known := self._open.get(name)) is not None:
            return RequestReply(id=0, permit=known)
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
        self._open[name] = permit
        return RequestReply(id=0, permit=permit)

    async def settle(self, session: Session, settlement: SettlePermit) -> RequestReply:
        """What became of an attempt."""
        name = session.id, settlement.permit
        if (task := self._asking.get(name)) is not None:
            self._withdrawn.add(name)
            task.cancel()
        permit = self._open.pop(name, None)
        if permit is not None:
            self.admission.settled(session, permit, settlement)
        return RequestReply(id=0)

    def worker_gone(self, session: Session) -> None:
        """Its worker is dead: it waits for nothing any more."""
        for (owner, _), task in list(self._asking.items()):
            if owner == session.id:
                task.cancel()
