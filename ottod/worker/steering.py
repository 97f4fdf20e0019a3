"""How a running session is told what to do: steered, interrupted, paused, checkpointed, rolled back.

Each order is in the journal before whoever gave it hears that it was obeyed. A pause outlives the process: the next
incarnation begins paused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ottod.core.resume import Restored, too_few_turns
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.events import CheckpointWritten, ConversationRolledBack
from ottod.protocol.worker import DeliverInput, ForgetTurns, InterruptTurn, NoteCheckpoint, SetPause
from ottod.worker.inbox import Inbox
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.state import AnnouncedState
from ottod.worker.text import cut
from ottod.worker.turns import TurnDriver

MAX_REASON_BYTES = 2000
LEFT_OPEN = Failure(
    code="turn_open",
    message="the session goes on in another process, and its turn is still open",
    mend="interrupt it again",
    retryable=True,
)


class Steering:
    """Those of `session`. `equip` gives the driver, built if need be; `on_change` is called when work may go on."""

    def __init__(
        self,
        link: Link,
        inbox: Inbox,
        state: AnnouncedState,
        *,
        session: str,
        equip: Callable[[], Awaitable[TurnDriver | None]],
        on_change: Callable[[], None],
    ) -> None:
        self._link = link
        self._inbox = inbox
        self._state = state
        self._session = session
        self._equip = equip
        self._on_change = on_change
        self._journal: JournalWriter | None = None
        self.driver: TurnDriver | None = None
        """Once it has been built."""
        self.is_paused = False
        self._pause_reason = ""
        self._turn = 0

    def begin(self, restored: Restored, journal: JournalWriter) -> None:
        """Takes over what earlier incarnations were told."""
        self._journal = journal
        self.is_paused, self._pause_reason = restored.is_paused, restored.pause_reason
        self._turn = restored.turn

    def equipped(self, driver: TurnDriver) -> None:
        """There is a driver from now on."""
        self.driver = driver
        if self.is_paused:
            driver.pause()

    def announce(self) -> None:
        """Says that the session is paused, if it is, once its process is ready."""
        if self.is_paused:
            self._state.happened("pause_requested", self._pause_reason)

    @property
    def _is_driving(self) -> bool:
        return self.driver is not None and self.driver.is_driving

    # ------------------------------------------------------------ orders; all raise StorageError

    async def deliver(self, order: DeliverInput) -> Failure | None:
        """Something was said to the session: for the next turn, or for the one that runs."""
        assert self._journal is not None
        taken = await self._inbox.accept(order, self._journal)
        if isinstance(taken, Failure):
            return taken
        if taken is not None and taken.is_steer and self.driver is not None:
            self.driver.steer(taken)
        return None

    async def interrupt(self, order: InterruptTurn) -> Failure | None:
        """Ends the turn that runs, and nothing else; done when it is over."""
        if self.driver is None or not self.driver.is_driving:
            return Failure(
                code="no_turn",
                message="no turn is running",
                mend=f"say something to it: ottoctl send {self._session} TEXT",
            )
        is_over = await self.driver.interrupt(cut(order.reason, MAX_REASON_BYTES)[0])
        return None if is_over else LEFT_OPEN

    async def set_pause(self, order: SetPause) -> Failure | None:
        """Idempotent. What has begun goes on to its result."""
        assert self._journal is not None
        if order.paused == self.is_paused:
            return None
        if order.paused:
            reason = cut(order.reason, MAX_REASON_BYTES)[0]
            self.is_paused, self._pause_reason = True, reason
            if self.driver is not None:
                self.driver.pause()
            self._journal.note(j.SessionPaused(reason=reason))
            if self._state.current not in ("starting", "paused"):
                self._state.happened("pause_requested", reason)
            await self._journal.put(())
            return None
        # At once, so that who pauses it again before this is durable is not told that it is paused.
        self.is_paused, self._pause_reason = False, ""
        self._journal.note(j.SessionUnpaused())
        await self._journal.put(())
        if not self.is_paused:
            self._go_on()
        return None

    def _go_on(self) -> None:
        if self._state.current == "paused":
            self._state.happened("unpause_requested", is_passing=not self._is_driving)
            if not self._is_driving:
                self._state.happened("turn_ended", is_passing=bool(self._inbox))
        if self.driver is not None:
            self.driver.unpause()
        self._on_change()

    async def checkpoint(self, order: NoteCheckpoint) -> Failure | None:
        """Notes a point to fork at, wherever the session is."""
        await self.note_checkpoint(order.name)
        return None

    async def note_checkpoint(self, name: str) -> int:
        """The same, for whoever wants one; gives the turn, which it is named after without a name."""
        assert self._journal is not None
        turn = self.driver.turns if self.driver is not None else self._turn
        name = name or f"turn-{turn}"
        self._journal.note(j.Checkpoint(name=name, turn=turn, last_seq=self._link.last_seq))
        self._link.emit(CheckpointWritten(checkpoint=name, turn=turn))
        await self._journal.put(())
        return turn

    async def forget(self, order: ForgetTurns) -> Failure | None:
        """The last turns leave the conversation. What they did to files is not undone."""
        assert self._journal is not None
        driver = await self._equip()
        if driver is None:
            return Failure(code="session_ended", message="the session is ending and hears nothing more")
        if driver.is_driving:
            return Failure(
                code="turn_open",
                message="a turn is running",
                mend=f"`ottoctl wait --idle {self._session}`, or `ottoctl interrupt {self._session}`",
            )
        known = len(driver.marks)
        if not 0 < order.turns <= known:
            return too_few_turns(self._session, order.turns, known)
        driver.forget(order.turns)
        newest = driver.marks[-1].turn if driver.marks else 0
        self._journal.note(j.TurnsRolledBack(turns=order.turns, turn=newest))
        self._link.emit(ConversationRolledBack(turns=order.turns, turn=newest))
        await self._journal.put(())
        return None
