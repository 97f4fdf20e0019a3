"""Clients' orders to running sessions: interrupt, pause, checkpoint, roll back.

A worker obeys them and answers once that is in its journal. What a session without a worker can be told is done
without one: a parked session's journal has no other writer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Protocol

from ottod.core.past import Past
from ottod.core.resume import too_few_turns
from ottod.errors import RefusedError, StorageError
from ottod.protocol import journal as j
from ottod.protocol.events import ConversationRolledBack
from ottod.protocol.worker import CommandBody, ForgetTurns, InterruptTurn, NoteCheckpoint, SetPause
from ottod.root.context import RootContext
from ottod.root.session_table import Session
from ottod.storage.journal import LOST, Journal
from ottod.storage.journal_files import NAME

INTERRUPT_TIMEOUT_S = 60.0
"""A turn is over when its tools are down, which takes a while at worst."""


class Order(Protocol):
    """Tells a worker something and waits until it has obeyed. Raises RefusedError."""

    def __call__(self, session: Session, body: CommandBody, *, timeout_s: float = ...) -> Awaitable[None]: ...


class Steering:
    """Of all sessions of this root."""

    def __init__(self, context: RootContext, order: Order) -> None:
        self._c = context
        self._order = order

    async def interrupt(self, session: Session, reason: str) -> None:
        """Returns when the turn is over. Raises RefusedError."""
        await self._order(session, InterruptTurn(reason=reason), timeout_s=INTERRUPT_TIMEOUT_S)

    async def set_pause(self, session: Session, *, paused: bool, reason: str = "", below: bool = False) -> None:
        """Pauses a session or lets it go on, from the top of its tree if those `below` are meant. RefusedError."""
        body = SetPause(paused=paused, reason=reason)
        await self._order(session, body)
        if below:
            for child in _below(session):
                if not (child.has_ended or child.is_stopping or child.info.state == "parked"):
                    await self._order(child, body)

    async def checkpoint(self, session: Session, name: str) -> None:
        """Returns when it is in the journal. Raises RefusedError."""
        await self._order(session, NoteCheckpoint(name=name))

    async def roll_back(self, session: Session, turns: int) -> None:
        """Raises RefusedError, StorageError."""
        if session.info.state != "parked":
            await self._order(session, ForgetTurns(turns=turns))
            return
        directory = self._c.sessions_dir / session.id
        try:
            newest = await self._c.in_thread(forget_turns, directory, session.key, turns)
        except StorageError as error:
            if error.code != LOST or session.info.turn or session.info.resumed_from:
                raise
            # Nothing was ever in it: its workers died before they could open it.
            raise _no_such_turns(session.id, turns, 0) from error
        self._c.record(session, ConversationRolledBack(turns=turns, turn=newest))


def _below(session: Session) -> Iterable[Session]:
    """What is below a session, each behind what is above it."""
    return reversed(session.line_up()[:-1])


def _no_such_turns(session: str, wanted: int, known: int) -> RefusedError:
    failure = too_few_turns(session, wanted, known)
    return RefusedError(failure.message, code=failure.code, mend=failure.mend)


def forget_turns(directory: Path, session_key: int, turns: int) -> int:
    """On a thread: rolls back a journal that nobody writes; gives the newest turn that remains.

    Raises: RefusedError if there are not as many turns.
    """
    journal = Journal.open(directory / NAME, session_key=session_key, create=False)
    try:
        past = Past()
        for entry in journal.entries:
            past.take(entry)
        restored = past.restored()
        if turns > len(restored.marks):
            raise _no_such_turns(directory.name, turns, len(restored.marks))
        kept = restored.marks[: len(restored.marks) - turns]
        newest = kept[-1].turn if kept else 0
        if restored.open is not None:
            # It will never be gone on with: it is the first of those that are forgotten.
            journal.append(j.TurnEnded(turn=restored.turn, outcome="cancelled"))
        journal.append(j.TurnsRolledBack(turns=turns, turn=newest))
        journal.sync()
        return newest
    finally:
        journal.close()
