"""What an incarnation finds of those before it. A past that cannot be read is an error, never a fresh start."""

from __future__ import annotations

import asyncio

from ottod.core.resume import Restored
from ottod.errors import RefusedError, StorageError
from ottod.protocol.birth import Birth
from ottod.protocol.events import LogWarning
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link


async def open_past(birth: Birth, link: Link) -> tuple[JournalWriter, Restored]:
    """Opens the session's journal and says what it amounts to; what is strange about it is a warning.

    Raises: StorageError if it cannot be read, or if it has lost what it held of a session that has begun.
    """
    try:
        if birth.incarnation == 1:
            journal = JournalWriter.open(birth)
        else:
            # Reading a long one takes a while, and the heart must go on beating.
            journal = await asyncio.to_thread(JournalWriter.open, birth)
    except RefusedError as error:
        # An earlier process of this session still writes. Beside it this one must not; later it may.
        raise StorageError(error.message, code=error.code, mend=error.mend) from error
    link.read_fsyncs = journal.read_fsyncs
    journal.redact = link.redacted

    def tell(error: StorageError) -> None:
        link.emit(LogWarning(message=error.message, code=error.code))

    journal.on_trouble = tell
    if journal.recovery:
        link.emit(LogWarning(message=journal.recovery, code="journal_repaired"))
    restored = journal.restored()
    if birth.incarnation > 1 and not restored.has_begun:
        text = "the session has no journal: its earlier process was lost before it began"
        link.emit(LogWarning(message=text, code="journal_missing"))
    return journal, restored
