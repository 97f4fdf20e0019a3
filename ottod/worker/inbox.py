"""The messages that wait for a turn. One that was accepted is in the journal: it outlives its process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from msgspec.structs import replace

from ottod.core.resume import Waiting, child_report
from ottod.errors import Failure
from ottod.protocol import journal as j
from ottod.protocol.events import MessageReceived
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link
from ottod.worker.text import cut

MAX_WAITING = 100
"""Messages from outside that may wait. The ends of children come on top; of those there are few."""
SHOWN_BYTES = 2000
"""Of a message's text, in the event that announces it."""


class Inbox:
    """One session's waiting messages, oldest first. `on_arrival` is called when one can be taken."""

    def __init__(self, link: Link, *, on_arrival: Callable[[], None]) -> None:
        self._link = link
        self._on_arrival = on_arrival
        self._waiting: deque[Waiting] = deque()
        self._newest_number = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def restore(self, waiting: tuple[Waiting, ...], *, newest_number: int) -> None:
        """Takes over what an earlier incarnation accepted."""
        self._waiting.extend(waiting)
        self._newest_number = newest_number

    def add_task(self, text: str) -> None:
        """The session's own task; the journal has it with `session.opened`."""
        self._waiting.append(Waiting(number=0, text=text, sender="user"))

    async def accept(
        self, text: str, sender: str, journal: JournalWriter, *, is_steer: bool = False
    ) -> Waiting | Failure:
        """Takes a message in, durably, or says why not. Raises StorageError."""
        if len(self._waiting) >= MAX_WAITING:
            return Failure(code="inbox_full", message=f"{MAX_WAITING} messages wait already", retryable=True)
        self._newest_number += 1
        number = self._newest_number
        journal.note(j.InputAccepted(number=number, text=text, sender=sender, steer=is_steer))
        # In its place before the sync, so that messages keep their order; the turn's own sync covers it too.
        message = Waiting(number=number, text=text, sender=sender, is_steer=is_steer)
        self._waiting.append(message)
        await journal.put(())
        self._announce(number, sender, text)
        return message

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
        self._announce(report.number, report.sender, report.text)

    def _announce(self, number: int, sender: str, text: str) -> None:
        self._link.emit(MessageReceived(message=f"m{number}", sender=sender, text=cut(text, SHOWN_BYTES)[0]))
        self._on_arrival()

    def take(self) -> Waiting:
        """The oldest. There must be one."""
        return self._waiting.popleft()

    def holds(self, number: int) -> bool:
        """Whether that message waits still."""
        return any(message.number == number for message in self._waiting)

    def take_out(self, number: int) -> None:
        """Removes a message that has been heard before its time."""
        self._waiting = deque(message for message in self._waiting if message.number != number)
