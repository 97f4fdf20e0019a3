"""The notes of a session's project, as its agent is told of them: read once, before its first turn, and then kept.

What was read is in the journal before any turn is, so that every later incarnation, and whoever goes on from this
session's past, has the same prompt, whatever has become of the file.
"""

from __future__ import annotations

import asyncio
import os
from hashlib import sha256

from ottod.core.project_notes import MAX_GIVEN_BYTES, section
from ottod.core.resume import Restored
from ottod.isolation.project_notes import ProjectNotes, find_notes
from ottod.protocol import journal as j
from ottod.protocol.birth import Birth
from ottod.protocol.events import LogWarning, ProjectNotesRead
from ottod.worker.journal_writer import JournalWriter
from ottod.worker.link import Link

READER = "fs_read"
"""The tool that can read what is not given."""


async def project_notes(birth: Birth, link: Link, journal: JournalWriter, restored: Restored) -> str:
    """The section for the prompt; empty if there is none. To be called before this process is confined."""
    if restored.notes is not None:
        return restored.notes.text
    if not birth.project_notes:
        return ""
    found = await asyncio.to_thread(find_notes, birth.cwd, hidden=birth.private_dirs)
    if found is None:
        return ""
    if found.problem:
        link.emit(LogWarning(message=f"OTTO.md is not given to the agent: {found.problem}", code="notes_refused"))
        return ""
    noted = _noted(found, birth, link)
    # One step of the loop; nothing depends on it before the first model call, whose own entry is synced.
    journal.note(noted)
    link.emit(
        ProjectNotesRead(
            path=noted.path,
            digest=noted.digest,
            size_bytes=noted.size_bytes,
            given_bytes=min(noted.size_bytes, MAX_GIVEN_BYTES),
        )
    )
    return noted.text


def _noted(found: ProjectNotes, birth: Birth, link: Link) -> j.NotesRead:
    text = link.redactor.text(found.text)
    name = os.path.relpath(found.path, os.path.realpath(birth.cwd))
    can_read = READER in birth.spec.tools and not name.startswith("..")
    return j.NotesRead(
        path=found.path,
        digest=sha256(found.text.encode("utf-8", "replace")).hexdigest(),
        size_bytes=found.size_bytes,
        text=section(text, name=name, reader=READER if can_read else ""),
    )
