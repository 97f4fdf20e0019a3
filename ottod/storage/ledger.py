"""What was spent, and what may have been: the ledger, the open permits, and the accounts above them.

The ledger has one line for each model call, and outlives its sessions: spent money stays spent. A permit's row stands
from before its call until its line is written; both change hands in one transaction, with the accounts that the line
counts in, so that no moment of a crash loses or doubles one. A line is known by its session and permit: told again,
it counts once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from ottod.protocol.results import CostRow
from ottod.protocol.usage import Usage
from ottod.storage.database import Database

CostKey = Literal["agent", "model", "session", "day"]
MAX_COST_ROWS = 10_000
_KEYS: dict[CostKey, str] = {
    "agent": "agent",
    "model": "provider || ':' || model",
    "session": "session",
    "day": "date(at_ns / 1000000000, 'unixepoch', 'localtime')",
}
_USAGE = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "usd_micros",
    "calls",
)
_TOKENS = "input_tokens + output_tokens + cache_read_tokens + cache_write_tokens"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The form that all rows share."""


class LedgerEntry(Row, frozen=True, kw_only=True):
    """One model call's consumption. `is_presumed`: nobody knows, and it is the most that it can have been."""

    session: str
    at_ns: int
    provider: str
    model: str
    usage: Usage
    agent: str = ""
    permit: str = ""
    is_presumed: bool = False


class PermitRow(Row, frozen=True, kw_only=True):
    """A permit whose call may be on its way, and the most that it can consume. Without `usd_micros`: no price."""

    session: str
    permit: str
    at_ns: int
    agent: str
    provider: str
    model: str
    target: int
    input_tokens: int
    max_output_tokens: int
    usd_micros: int | None
    is_last: bool = False


class AccountRow(Row, frozen=True, kw_only=True):
    """What a session and those below it may spend and have spent. `above` is the session above, or empty."""

    session: str
    above: str
    tokens: int | None
    usd_micros: int | None
    spent_tokens: int = 0
    spent_usd_micros: int = 0


class Ledger:
    """Its tables in the database. Every method raises StorageError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ------------------------------------------------------------ permits

    async def put_permit(self, row: PermitRow, accounts: Sequence[AccountRow]) -> None:
        """Writes a permit, and the accounts above it that are not yet written; it survives a kill."""

        def work(connection: sqlite3.Connection) -> None:
            _insert_accounts(connection, accounts)
            fields = PermitRow.__struct_fields__
            connection.execute(
                f"INSERT OR REPLACE INTO permits ({', '.join(fields)}) VALUES ({', '.join('?' * len(fields))})",
                [getattr(row, field) for field in fields],
            )

        await self._database.transact(work, durable=False)

    async def settle(
        self, session: str, permit: str, entry: LedgerEntry | None, path: Sequence[str], *, durable: bool = False
    ) -> bool:
        """A permit is over: its row goes, and what was consumed is booked, in every account of `path` too.

        False if it was booked before.
        """

        def work(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM permits WHERE session = ? AND permit = ?", (session, permit))
            if entry is None or not _insert(connection, entry):
                return False
            connection.executemany(
                "UPDATE accounts SET spent_tokens = spent_tokens + ?, spent_usd_micros = spent_usd_micros + ?"
                " WHERE session = ?",
                [(entry.usage.total_tokens, entry.usage.usd_micros or 0, key) for key in path],
            )
            return True

        return await self._database.transact(work, durable=durable)

    async def open_permits(self) -> list[PermitRow]:
        """All permits that nobody has settled, oldest first."""
        fields = PermitRow.__struct_fields__

        def work(connection: sqlite3.Connection) -> list[PermitRow]:
            found = connection.execute(f"SELECT {', '.join(fields)} FROM permits ORDER BY at_ns")
            pairs = (dict(zip(fields, row, strict=True)) for row in found)
            return [PermitRow(**{**pair, "is_last": bool(pair["is_last"])}) for pair in pairs]

        return await self._database.query(work)

    # ------------------------------------------------------------ accounts

    async def put_accounts(self, accounts: Sequence[AccountRow]) -> None:
        """Writes accounts that are not yet written, and the limits of those that are."""

        def work(connection: sqlite3.Connection) -> None:
            _insert_accounts(connection, accounts)
            connection.executemany(
                "UPDATE accounts SET tokens = ?, usd_micros = ? WHERE session = ?",
                [(row.tokens, row.usd_micros, row.session) for row in accounts],
            )

        await self._database.transact(work, durable=False)

    async def accounts(self) -> dict[str, AccountRow]:
        """All accounts, by session."""
        fields = AccountRow.__struct_fields__

        def work(connection: sqlite3.Connection) -> dict[str, AccountRow]:
            found = connection.execute(f"SELECT {', '.join(fields)} FROM accounts")
            rows = (AccountRow(**dict(zip(fields, row, strict=True))) for row in found)
            return {row.session: row for row in rows}

        return await self._database.query(work)

    async def drop_accounts(self, sessions: Iterable[str]) -> None:
        """Forgets accounts: their sessions have ended, with all below them. The ledger keeps what they spent."""
        keys = [(session,) for session in sessions]
        await self._database.transact(
            lambda connection: connection.executemany("DELETE FROM accounts WHERE session = ?", keys), durable=False
        )

    # ------------------------------------------------------------ the ledger

    async def add(self, entry: LedgerEntry) -> bool:
        """Books one model call, durably. False if it was booked before."""
        return await self._database.transact(lambda connection: _insert(connection, entry))

    async def entries(self, session: str) -> list[LedgerEntry]:
        """A session's lines, in the order of their writing."""

        def work(connection: sqlite3.Connection) -> list[LedgerEntry]:
            found = connection.execute(
                f"SELECT at_ns, provider, model, agent, permit, is_presumed, {', '.join(_USAGE)} FROM ledger"
                " WHERE session = ? ORDER BY entry",
                (session,),
            )
            return [
                LedgerEntry(
                    session=session,
                    at_ns=at_ns,
                    provider=provider,
                    model=model,
                    agent=agent,
                    permit=permit,
                    is_presumed=bool(is_presumed),
                    usage=Usage(**dict(zip(_USAGE, usage, strict=True))),
                )
                for at_ns, provider, model, agent, permit, is_presumed, *usage in found
            ]

        return await self._database.query(work)

    async def spent(self, *, since_ns: int = 0, session: str = "") -> tuple[int, int]:
        """Tokens and micro-dollars of all lines since then, of one session or of all."""
        where, arguments = "at_ns >= ?", [since_ns]
        if session:
            return await self._sum(f"{where} AND session = ?", [*arguments, session])
        return await self._sum(where, list(arguments))

    async def _sum(self, where: str, arguments: list[int | str]) -> tuple[int, int]:
        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            sums = f"SELECT coalesce(sum({_TOKENS}), 0), coalesce(sum(usd_micros), 0) FROM ledger WHERE {where}"
            tokens, micros = connection.execute(sums, arguments).fetchone()
            return int(tokens), int(micros)

        return await self._database.query(work)

    async def cost(self, by: CostKey, *, since_ns: int = 0) -> list[CostRow]:
        """Sums of the lines since then, the dearest first; by day the newest first."""
        key = _KEYS[by]
        presumed = f"sum(is_presumed * ({_TOKENS})), sum(is_presumed * coalesce(usd_micros, 0))"
        unpriced = "sum((usd_micros IS NULL) * calls)"
        sums = ", ".join(f"sum({column})" for column in _USAGE)
        order = "k DESC" if by == "day" else "coalesce(sum(usd_micros), 0) DESC, sum(calls) DESC, k"

        def work(connection: sqlite3.Connection) -> list[CostRow]:
            found = connection.execute(
                f"SELECT {key} AS k, {presumed}, {unpriced}, {sums}"
                f" FROM ledger WHERE at_ns >= ? GROUP BY k ORDER BY {order} LIMIT ?",
                (since_ns, MAX_COST_ROWS),
            )
            return [
                CostRow(
                    key=name,
                    presumed_tokens=tokens,
                    presumed_usd_micros=micros,
                    unpriced_calls=unpriced_calls,
                    usage=Usage(**dict(zip(_USAGE, usage, strict=True))),
                )
                for name, tokens, micros, unpriced_calls, *usage in found
            ]

        return await self._database.query(work)


def _insert_accounts(connection: sqlite3.Connection, accounts: Sequence[AccountRow]) -> None:
    fields = AccountRow.__struct_fields__
    connection.executemany(
        f"INSERT OR IGNORE INTO accounts ({', '.join(fields)}) VALUES ({', '.join('?' * len(fields))})",
        [[getattr(row, field) for field in fields] for row in accounts],
    )


def _insert(connection: sqlite3.Connection, entry: LedgerEntry) -> bool:
    columns = ("session", "at_ns", "provider", "model", "agent", "permit", "is_presumed", *_USAGE)
    usage = [getattr(entry.usage, column) for column in _USAGE]
    head = (entry.session, entry.at_ns, entry.provider, entry.model, entry.agent, entry.permit, entry.is_presumed)
    done = connection.execute(
        f"INSERT OR IGNORE INTO ledger ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
        (*head, *usage),
    )
    return done.rowcount > 0
