"""Which session is meant by what somebody typed."""

from __future__ import annotations

from typing import Protocol

from ottod.ids import PREFIX, BadSessionId, normalise_prefix
from ottod.protocol.results import SessionInfo
from ottod.root.session_table import AmbiguousPrefix, NoSuchSession, Session, SessionTable

MAX_GIVEN_NAME_CHARS = 100


class Records(Protocol):
    """What is on record of sessions; see `Database`."""

    async def once_named(self, name: str) -> SessionInfo | None: ...

    async def session_by_prefix(self, prefix: str, *, limit: int = 2) -> list[SessionInfo]: ...


class Lookup:
    """Finds sessions in memory, and ended ones on record.

    A name comes before the beginning of an id, also when the session that had it has ended: it was given on purpose,
    and letters that happen to begin an id must not make a command act on a stranger. No name begins with `s-`.
    """

    def __init__(self, table: SessionTable, records: Records) -> None:
        self._table = table
        self._records = records

    async def find(self, text: str) -> Session:
        """The session that lives and has this name, or the last that had it, or the one whose id begins so.

        Raises NoSuchSession, AmbiguousPrefix.
        """
        name = text.strip()
        if not name.lower().startswith(PREFIX) and (named := await self._named(name)) is not None:
            return named
        try:
            return self._table.find(text)
        except BadSessionId as error:
            raise NoSuchSession(f"{error.message}, nor the name of a session", mend="see `ottoctl ps -a`") from None
        except NoSuchSession:
            found = await self._records.session_by_prefix(normalise_prefix(text), limit=5)
            if not found:
                raise
            if len(found) > 1:
                raise AmbiguousPrefix(
                    f"{len(found)} sessions start with {text}", mend="type more of the id"
                ) from None
            if found[0].state != "ended":
                raise NoSuchSession(f"{found[0].session} has ended, and its end is not in the books yet") from None
            return Session(found[0], None)

    async def _named(self, name: str) -> Session | None:
        known = self._table.named(name) or self._table.once_named(name)
        if known is not None or not 0 < len(name) <= MAX_GIVEN_NAME_CHARS:
            return known
        info = await self._records.once_named(name)
        return Session(info, None) if info is not None else None
