"""What a session begins with that goes on from another one's past."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec.structs import replace

from ottod.protocol.journal import Snapshot
from ottod.protocol.results import BudgetLine
from ottod.root.plan import SessionPlan
from ottod.storage.journal import begin_journal
from ottod.storage.journal_files import NAME


class Heritage(msgspec.Struct, frozen=True, kw_only=True):
    """The past of session `origin`, and its plan unless the new session has one of its own."""

    origin: str
    plan: SessionPlan | None
    snapshot: Snapshot
    budgets: tuple[BudgetLine, ...] = ()
    """What was spent of its budgets, if that counts on."""
    tree: str = ""
    """The tree that the new session is of, if not its own: a workflow's artifacts go on as they are numbered."""

    def books(self, session: str) -> tuple[BudgetLine, ...]:
        """What was spent, as that of the session that goes on: its own budgets and those of a workflow's blocks."""
        return tuple(replace(b, session=session + b.session.removeprefix(self.origin)) for b in self.budgets)

    def write(self, directory: Path, session_key: int) -> None:
        """The first entry of the new session's journal. Blocks. Raises StorageError."""
        begin_journal(directory / NAME, self.snapshot, session_key=session_key)
