"""The database file: its tables, how they came to be, and how the file is opened and checked.

`PRAGMA user_version` counts the migrations that were applied; a file with more of them than this version knows is
refused. A file that SQLite cannot read is put aside and reported, never deleted.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from pathlib import Path

import msgspec

from ottod.errors import StorageError
from ottod.storage.aside import numbered_name
from ottod.storage.lock import lock_file

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE sessions (
        session       TEXT PRIMARY KEY,
        state         TEXT NOT NULL,
        agent         TEXT NOT NULL,
        model         TEXT NOT NULL,
        kind          TEXT NOT NULL,
        parent        TEXT NOT NULL,
        created_at_ns INTEGER NOT NULL,
        ended_at_ns   INTEGER NOT NULL,
        cause         TEXT NOT NULL,
        last_seq      INTEGER NOT NULL,
        last_offset   INTEGER NOT NULL,
        info          BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX sessions_newest ON sessions (created_at_ns DESC, session);
    CREATE INDEX sessions_live ON sessions (state, created_at_ns DESC) WHERE state <> 'ended';
    CREATE INDEX sessions_parent ON sessions (parent) WHERE parent <> '';
    CREATE TABLE incarnations (
        session          TEXT NOT NULL,
        incarnation      INTEGER NOT NULL,
        pid              INTEGER NOT NULL,
        start_time_ticks INTEGER NOT NULL,
        started_at_ns    INTEGER NOT NULL,
        ended_at_ns      INTEGER NOT NULL,
        cause            BLOB,
        PRIMARY KEY (session, incarnation)
    ) WITHOUT ROWID;
    CREATE INDEX incarnations_live ON incarnations (session) WHERE ended_at_ns = 0;
    CREATE TABLE ledger (
        entry              INTEGER PRIMARY KEY,
        session            TEXT NOT NULL,
        at_ns              INTEGER NOT NULL,
        provider           TEXT NOT NULL,
        model              TEXT NOT NULL,
        input_tokens       INTEGER NOT NULL,
        output_tokens      INTEGER NOT NULL,
        cache_read_tokens  INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        reasoning_tokens   INTEGER NOT NULL,
        usd_micros         INTEGER,
        calls              INTEGER NOT NULL
    );
    CREATE INDEX ledger_session ON ledger (session);
    CREATE INDEX ledger_time ON ledger (at_ns);
    """,
    """
    ALTER TABLE incarnations ADD COLUMN secret BLOB NOT NULL DEFAULT x'';
    ALTER TABLE incarnations ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE plans (
        session   TEXT PRIMARY KEY,
        start_key TEXT NOT NULL,
        plan      BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX plans_key ON plans (start_key) WHERE start_key <> '';
    CREATE TABLE supervision (
        node     TEXT PRIMARY KEY,
        snapshot BLOB NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE sessions ADD COLUMN tree TEXT NOT NULL DEFAULT '';
    CREATE INDEX sessions_tree ON sessions (tree) WHERE tree <> '';
    CREATE TABLE artifacts (
        artifact   TEXT PRIMARY KEY,
        tree       TEXT NOT NULL,
        session    TEXT NOT NULL,
        agent      TEXT NOT NULL,
        name       TEXT NOT NULL,
        version    INTEGER NOT NULL,
        kind       TEXT NOT NULL,
        digest     TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        sources    TEXT NOT NULL,
        at_ns      INTEGER NOT NULL,
        write_key  TEXT NOT NULL,
        UNIQUE (tree, name, version)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX artifacts_key ON artifacts (write_key) WHERE write_key <> '';
    CREATE INDEX artifacts_newest ON artifacts (at_ns DESC);
    CREATE INDEX artifacts_digest ON artifacts (digest);
    """,
    """
    ALTER TABLE ledger ADD COLUMN agent TEXT NOT NULL DEFAULT '';
    ALTER TABLE ledger ADD COLUMN permit TEXT NOT NULL DEFAULT '';
    ALTER TABLE ledger ADD COLUMN is_presumed INTEGER NOT NULL DEFAULT 0;
    CREATE UNIQUE INDEX ledger_permit ON ledger (session, permit) WHERE permit <> '';
    CREATE TABLE permits (
        session           TEXT NOT NULL,
        permit            TEXT NOT NULL,
        at_ns             INTEGER NOT NULL,
        agent             TEXT NOT NULL,
        provider          TEXT NOT NULL,
        model             TEXT NOT NULL,
        target            INTEGER NOT NULL,
        input_tokens      INTEGER NOT NULL,
        max_output_tokens INTEGER NOT NULL,
        usd_micros        INTEGER,
        is_last           INTEGER NOT NULL,
        PRIMARY KEY (session, permit)
    ) WITHOUT ROWID;
    CREATE TABLE accounts (
        session          TEXT PRIMARY KEY,
        above            TEXT NOT NULL,
        tokens           INTEGER,
        usd_micros       INTEGER,
        spent_tokens     INTEGER NOT NULL,
        spent_usd_micros INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE audit (
        entry   INTEGER PRIMARY KEY,
        session TEXT NOT NULL,
        seq     INTEGER NOT NULL,
        at_ns   INTEGER NOT NULL,
        record  BLOB NOT NULL
    );
    CREATE UNIQUE INDEX audit_event ON audit (session, seq) WHERE seq > 0;
    CREATE TABLE grants (
        id    TEXT PRIMARY KEY,
        agent TEXT NOT NULL,
        body  BLOB NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE provider_lanes (
        provider TEXT NOT NULL,
        model    TEXT NOT NULL,
        kept     BLOB NOT NULL,
        PRIMARY KEY (provider, model)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE decision_nodes (
        node          TEXT PRIMARY KEY,
        kind          TEXT NOT NULL,
        title         TEXT NOT NULL,
        text          TEXT NOT NULL,
        confidence    INTEGER,
        status        TEXT NOT NULL,
        reason        TEXT NOT NULL,
        session       TEXT NOT NULL,
        agent         TEXT NOT NULL,
        tree          TEXT NOT NULL,
        project       TEXT NOT NULL,
        at_ns         INTEGER NOT NULL,
        changed_at_ns INTEGER NOT NULL,
        artifacts     TEXT NOT NULL,
        sessions      TEXT NOT NULL,
        commits       TEXT NOT NULL,
        folded        TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX decision_nodes_project ON decision_nodes (project, at_ns DESC);
    CREATE INDEX decision_nodes_tree ON decision_nodes (tree);
    CREATE INDEX decision_nodes_session ON decision_nodes (session);
    CREATE TABLE decision_edges (
        source  TEXT NOT NULL,
        kind    TEXT NOT NULL,
        target  TEXT NOT NULL,
        project TEXT NOT NULL,
        session TEXT NOT NULL,
        at_ns   INTEGER NOT NULL,
        PRIMARY KEY (source, kind, target)
    ) WITHOUT ROWID;
    CREATE INDEX decision_edges_target ON decision_edges (target);
    CREATE INDEX decision_edges_project ON decision_edges (project);
    CREATE TABLE decision_calls (
        entry   INTEGER PRIMARY KEY,
        session TEXT NOT NULL,
        call    TEXT NOT NULL,
        nodes   TEXT NOT NULL,
        UNIQUE (session, call)
    );
    """,
    """
    CREATE TABLE definitions (
        kind        TEXT NOT NULL,
        digest      TEXT NOT NULL,
        name        TEXT NOT NULL,
        source      TEXT NOT NULL,
        first_at_ns INTEGER NOT NULL,
        body        BLOB NOT NULL,
        PRIMARY KEY (kind, digest)
    );
    CREATE INDEX definitions_name ON definitions (kind, name, first_at_ns DESC);
    CREATE TABLE definition_uses (
        session TEXT NOT NULL,
        kind    TEXT NOT NULL,
        digest  TEXT NOT NULL,
        PRIMARY KEY (session, kind, digest)
    ) WITHOUT ROWID;
    CREATE INDEX definition_uses_digest ON definition_uses (kind, digest);
    """,
    """
    ALTER TABLE artifacts ADD COLUMN step TEXT NOT NULL DEFAULT '';
    CREATE TABLE deliveries (
        artifact TEXT NOT NULL,
        sink     TEXT NOT NULL,
        state    TEXT NOT NULL,
        place    TEXT NOT NULL,
        reason   TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        at_ns    INTEGER NOT NULL,
        PRIMARY KEY (artifact, sink)
    ) WITHOUT ROWID;
    CREATE INDEX deliveries_place ON deliveries (place, at_ns DESC);
    """,
    """
    CREATE TABLE research (
        key      TEXT PRIMARY KEY,
        agent    TEXT NOT NULL,
        cwd      TEXT NOT NULL,
        question TEXT NOT NULL,
        result   TEXT NOT NULL,
        session  TEXT NOT NULL,
        at_ns    INTEGER NOT NULL,
        used_ns  INTEGER NOT NULL,
        hits     INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX research_used ON research (used_ns DESC);
    """,
    """
    ALTER TABLE sessions ADD COLUMN name TEXT NOT NULL DEFAULT '';
    CREATE INDEX sessions_name ON sessions (name, created_at_ns DESC) WHERE name <> '';
    """,
    """
    CREATE TABLE placed (
        number INTEGER PRIMARY KEY,
        place  TEXT NOT NULL,
        digest TEXT NOT NULL
    );
    CREATE UNIQUE INDEX placed_place ON placed (place, digest);
    INSERT OR IGNORE INTO placed (place, digest)
        SELECT place, digest FROM deliveries JOIN artifacts USING (artifact)
        WHERE state = 'delivered' AND place LIKE '/%' ORDER BY deliveries.at_ns;
    """,
)
"""Append-only: what has been released is never edited."""

_NOT_A_DATABASE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_COMPANIONS = ("-wal", "-shm")
_BEGUN_ANEW = "begun_anew_at_ns"


class DatabaseRecovery(msgspec.Struct, frozen=True, kw_only=True):
    """What opening the database found. `moved_aside` is where an unreadable file was put, `damage` why.

    `begun_anew_at_ns` is when this database was begun beside such a file, now or by an earlier root; 0 if it was not.
    """

    created: bool = False
    moved_aside: str = ""
    damage: str = ""
    migrated_from: int = 0
    begun_anew_at_ns: int = 0

    def describe(self) -> str:
        """One line for people."""
        if self.moved_aside:
            return f"new database: the old one was damaged ({self.damage}) and is kept as {self.moved_aside}"
        return "new database" if self.created else "database in order"


class DatabaseFile:
    """An open, locked and migrated database. The connection may be used from one thread at a time."""

    def __init__(self, path: Path, lock_fd: int, connection: sqlite3.Connection, recovery: DatabaseRecovery) -> None:
        self.path = path
        self.connection = connection
        self.recovery = recovery
        self._lock_fd = lock_fd

    def close(self) -> None:
        """Checkpoints and unlocks. Raises sqlite3.Error."""
        try:
            self.connection.close()
        finally:
            # Not before: closing any descriptor of the file would drop the locks that SQLite holds on it.
            os.close(self._lock_fd)


def open_database_file(path: Path) -> DatabaseFile:
    """Opens the database, makes it, or starts anew beside a damaged one.

    Raises: StorageError if it cannot be opened, is in use, or was written by a newer version.
    """
    try:
        return _open(path, moved_aside="", damage="")
    except _Damaged as damaged:
        aside = _move_aside(path)
        try:
            return _open(path, moved_aside=str(aside), damage=str(damaged))
        except _Damaged as again:
            raise StorageError(f"{path}: a new database is damaged too: {again}", mend="check the disk") from again


class _Damaged(Exception):
    """The file is no readable database."""


def _open(path: Path, *, moved_aside: str, damage: str) -> DatabaseFile:
    created = not path.exists()
    try:
        lock_fd = _lock(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", mend="see who owns the state directory") from error
    connection = None
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        _configure(connection)
        version = _migrate(path, connection)
        if moved_aside:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (_BEGUN_ANEW, str(time.time_ns())))
        begun_anew_at_ns = _begun_anew_at_ns(connection)
    except BaseException as error:
        if connection is not None:
            connection.close()
        os.close(lock_fd)
        if isinstance(error, sqlite3.Error):
            raise _translated(path, error) from error
        raise
    recovery = DatabaseRecovery(
        created=created,
        moved_aside=moved_aside,
        damage=damage,
        migrated_from=0 if created else version,
        begun_anew_at_ns=begun_anew_at_ns,
    )
    return DatabaseFile(path, lock_fd, connection, recovery)


def _lock(path: Path) -> int:
    """A second writing connection could corrupt the file, so a second process is refused at the door."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        lock_file(fd)
    except BlockingIOError:
        os.close(fd)
        raise StorageError(f"{path}: another process is writing it", mend="stop the other daemon") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _configure(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode != "wal":
        raise sqlite3.OperationalError(f"cannot use a write-ahead log here (mode {mode})")
    # A byte that is no text is a wrong letter in one row; by itself SQLite would give none of the rows.
    connection.text_factory = lambda data: str(data, "utf-8", "replace")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA journal_size_limit=16777216")
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise _Damaged(problem.splitlines()[-1])


def _migrate(path: Path, connection: sqlite3.Connection) -> int:
    """Applies what is missing, each step in one transaction. Returns the version found."""
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > len(MIGRATIONS):
        raise StorageError(
            f"{path}: the database has schema {found}, this version of Otto knows {len(MIGRATIONS)}",
            mend="install the newer version again, or move the database away",
        )
    for version in range(found, len(MIGRATIONS)):
        done = version + 1
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]}"
            f"INSERT OR REPLACE INTO meta VALUES ('schema_version', '{done}'); PRAGMA user_version={done}; COMMIT;"
        )
    return found


def _begun_anew_at_ns(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (_BEGUN_ANEW,)).fetchone()
    return int(row[0]) if row is not None and re.fullmatch("[0-9]{1,19}", str(row[0])) else 0


def _translated(path: Path, error: sqlite3.Error) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF in _NOT_A_DATABASE:
        return _Damaged(str(error))
    return storage_error(path, error)


def storage_error(path: Path, error: Exception) -> StorageError:
    """What SQLite says, as an error with a mend."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    mends = {
        sqlite3.SQLITE_FULL: "free some space; what was not written is kept and tried again",
        sqlite3.SQLITE_READONLY: "make the state directory writable",
        sqlite3.SQLITE_CANTOPEN: "see who owns the state directory",
        sqlite3.SQLITE_IOERR: "check the disk",
        sqlite3.SQLITE_CORRUPT: "restart the daemon: it puts the damaged file aside",
    }
    return StorageError(f"{path}: {error}", mend=mends.get(code, ""))


def _move_aside(path: Path) -> Path:
    """Renames the database with its log, so that what can be saved of it still can."""
    target = numbered_name(path, "broken")
    try:
        path.rename(target)
        for suffix in _COMPANIONS:
            companion = path.with_name(path.name + suffix)
            if companion.exists():
                companion.rename(target.with_name(target.name + suffix))
    except OSError as error:
        raise StorageError(f"{path}: damaged, and cannot be moved: {error.strerror}") from error
    return target
