"""What the gate before the model providers remembers, by provider and model: an opaque snapshot each."""

from __future__ import annotations

import sqlite3

from ottod.storage.database import Database
from ottod.storage.database_rows import as_bytes


async def put_provider_lane(database: Database, provider: str, model: str, kept: bytes) -> None:
    """Writes what is remembered of a model; empty forgets it. It survives a kill. Raises StorageError."""

    def work(connection: sqlite3.Connection) -> None:
        if kept:
            connection.execute("INSERT OR REPLACE INTO provider_lanes VALUES (?,?,?)", (provider, model, kept))
        else:
            connection.execute("DELETE FROM provider_lanes WHERE provider = ? AND model = ?", (provider, model))

    await database.transact(work, durable=False)


async def provider_lanes(database: Database) -> dict[tuple[str, str], bytes]:
    """Provider and model → what is remembered. Raises StorageError."""

    def work(connection: sqlite3.Connection) -> dict[tuple[str, str], bytes]:
        found = connection.execute("SELECT provider, model, kept FROM provider_lanes").fetchall()
        return {(provider, model): as_bytes(kept) for provider, model, kept in found}

    return await database.query(work)
