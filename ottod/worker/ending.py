"""How an incarnation leaves its journal: with the session's end, or with where another incarnation goes on."""

from __future__ import annotations

from ottod.errors import StorageError
from ottod.protocol import journal as j
from ottod.protocol.cause import Cause
from ottod.protocol.events import CheckpointWritten, LogError, LogWarning
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link

CHECKPOINT = "suspended"
"""The name of the checkpoint at which a session that nobody hears leaves off."""


UNLEARNED = (
    "OTTO.md stays as it is: in a headless run nobody can agree to a change; "
    "`ottoctl notes update` learns from it afterwards"
)


async def note_end(
    journal: JournalWriter, link: Link, cause: Cause, *, turn: int, is_suspended: bool, cannot_learn: bool = False
) -> None:
    """The last entry, durably. A disk that does not take it is told of; the last word leaves all the same.

    `cannot_learn`: it is said that nothing will be learned from a run that ends well.
    """
    if cannot_learn and not is_suspended and cause.kind == "completed":
        link.emit(LogWarning(message=UNLEARNED, code="not_learned"))
    entry: j.JournalEntry = j.SessionClosed(cause=cause)
    if is_suspended:
        entry = j.Checkpoint(name=CHECKPOINT, turn=turn, last_seq=link.last_seq)
    try:
        await journal.put([entry])
    except StorageError as error:
        link.emit(LogError(message=error.message, code=error.code))
    else:
        if is_suspended:
            link.emit(CheckpointWritten(checkpoint=CHECKPOINT, turn=turn))
