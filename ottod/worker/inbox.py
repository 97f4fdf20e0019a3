"""The messages that wait for a turn. One that was accepted is in the journal: it outlives its process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from ottod.core.heard import Heard
from ottod.core.resume import Restored, Waiting, child_report
from ottod.core.team import heading
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.events import MessageReceived
from ottod.protocol.worker import DeliverInput
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.questions import Questions
from ottod.worker.text import cut

MAX_WAITING = 100
"""Messages from outside that may wait. The ends of children come on top; of those there are few."""
MAX_OF_AGENTS = 200
"""Messages from other sessions that may wait, together; they take no place of a user's."""
MAX_OF_AGENT = 20
"""Of one of them: who says more than is listened to waits, and nobody else."""
SHOWN_BYTES = 2000
"""Of a message's text, in the event that announces it."""


class Inbox:
    """One session's waiting messages, oldest first. `on_arrival` is called when one can be taken."""

    def __init__(self, link: Link, *, on_arrival: Callable[[], None]) -> None:
        self._link = link
        self._on_arrival = on_arrival
        self._waiting: deque[Waiting] = deque()
        self._newest_number = 0
        self._heard = Heard()
        self.questions = Questions(link)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def restore(self, restored: Restored) -> None:
        """Takes over what an earlier incarnation accepted."""
        self._waiting.extend(restored.inbox)
        self._newest_number = restored.newest_number
        self._heard = Heard(restored.heard)
        self.questions.restore(restored)

    def add_task(self, text: str) -> None:
        """The session's own task; the journal has it with `session.opened`."""
        self._waiting.append(Waiting(number=0, text=text, sender="user"))

    async def accept(self, order: DeliverInput, journal: JournalWriter) -> Waiting | Failure | None:
        """Takes a message in, durably, or says why not; None for one that it has already. Raises StorageError."""
        if order.key and order.key in self._heard:
            await journal.put(())  # Whoever is told so may rely on it.
            self.questions.asked_again(order.key)
            return None
        if full := self._fullness(order):
            return Failure(code="inbox_full", message=full, retryable=True)
        text = order.text
        if order.name:
            text = f"{heading(name=order.name, session=order.sender, asks=order.asks)}\n\n{text}"
        self._newest_number += 1
        number = self._newest_number
        journal.note(
            j.InputAccepted(
                number=number,
                text=text,
                sender=order.sender,
                steer=order.steer,
                key=order.key,
                asks=order.asks,
            )
        )
        if order.key:
            self._heard.add(order.key)
        # In its place before the sync, so that messages keep their order; the turn's own sync covers it too.
        message = Waiting(
            number=number, text=text, sender=order.sender, is_steer=order.steer, key=order.key, asks=order.asks
        )
        self._waiting.append(message)
        await journal.put(())
        self._announce(number, order.sender, order.text, order.name)
        return message

    def _fullness(self, order: DeliverInput) -> str:
        """Why there is no room; empty if there is."""
        if not order.key:
            known = sum(not message.key for message in self._waiting)
            return f"{MAX_WAITING} messages wait already" if known >= MAX_WAITING else ""
        of_agents = [message.sender for message in self._waiting if message.key]
        if of_agents.count(order.sender) >= MAX_OF_AGENT:
            return f"{MAX_OF_AGENT} messages of {order.name or order.sender} wait already"
        return f"{MAX_OF_AGENTS} messages of agents wait already" if len(of_agents) >= MAX_OF_AGENTS else ""

    async def note_child_end(self, ended: j.ChildEnded, journal: JournalWriter, *, is_reported: bool) -> None:
        """Notes the end of a child; if the session is to hear of it, it waits for a turn. Raises StorageError."""
        if not is_reported:
            await journal.put([ended])
            return
        self._newest_number += 1
        ended = replace(ended, number=self._newest_number)
        journal.note(ended)
        report = child_report(ended)
        self._waiting.append(report)
        await journal.put(())
        self._announce(report.number, report.sender, report.text, ended.name)

    def _announce(self, number: int, sender: str, text: str, name: str = "") -> None:
        shown = cut(text, SHOWN_BYTES)[0]
        self._link.emit(MessageReceived(message=f"m{number}", sender=sender, text=shown, name=name))
        self._on_arrival()

    def take(self) -> Waiting:
        """The oldest, to begin a turn with. There must be one."""
        message = self._waiting.popleft()
        self.questions.begun(message)
        return message

    async def withdraw(self, key: str, journal: JournalWriter) -> None:
        """A message is not to have a turn, if it has none yet. Raises StorageError."""
        await self._withdraw(next((m for m in self._waiting if m.key == key), None), journal)

    async def withdraw_report(self, child: str, journal: JournalWriter) -> None:
        """The same of the message that a child has ended. Raises StorageError."""
        found = next((m for m in self._waiting if m.sender == child and not m.key), None)
        await self._withdraw(found, journal)

    async def _withdraw(self, message: Waiting | None, journal: JournalWriter) -> None:
        if message is not None:
            self._waiting.remove(message)
            await journal.put([j.InputWithdrawn(number=message.number)])

    def holds(self, number: int) -> bool:
        """Whether that message waits still."""
        return any(message.number == number for message in self._waiting)

    def take_out(self, number: int) -> None:
        """Removes a message that has been heard before its time."""
        self._waiting = deque(message for message in self._waiting if message.number != number)
