"""The store of artifacts believes nobody, and its index means nothing that is not there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ottod.errors import RefusedError, StorageError
from ottod.protocol.artifacts import MAX_ARTIFACT_BYTES, ArtifactInfo, SinkDelivery
from ottod.protocol.results import SessionInfo
from ottod.storage.artifact_index import ArtifactIndex, Refusal
from ottod.storage.artifacts import ArtifactStore
from ottod.storage.database import Database
from ottod.storage.schema import MIGRATIONS


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Place:
    """A store, and a directory in which a worker hands over."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.store = ArtifactStore(base / "artifacts")
        self.handover = base / "session" / "artifacts"
        self.handover.mkdir(parents=True, exist_ok=True)
        self.store.prepare()

    def hand_over(self, data: bytes) -> str:
        token = secrets.token_hex(16)
        (self.handover / token).write_bytes(data)
        return token

    def take(self, data: bytes) -> None:
        self.store.take(self.handover, self.hand_over(data), digest=digest(data), size_bytes=len(data))

    def files(self) -> list[str]:
        """Names in the store, without directories."""
        return sorted(path.name for path in (self.base / "artifacts").rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(contents=st.lists(st.binary(max_size=300), max_size=6))
def test_what_is_taken_is_given_back(place: Place, contents: list[bytes]) -> None:
    """Any content comes back as it was, in a whole and in parts, and the same content is kept once."""
    for data in contents:
        place.take(data)
        assert place.store.read(digest(data)) == data
        assert b"".join(place.store.read(digest(data), i, 100) for i in range(0, len(data), 100)) == data
        token = secrets.token_hex(16)
        place.store.give(digest(data), place.handover, token)
        assert (place.handover / token).read_bytes() == data
    assert {digest(data) for data in contents} <= set(place.files())
    assert len(set(place.files())) == len(place.files())


def test_what_changed_on_the_way_is_refused(place: Place) -> None:
    """A file that does not have its digest, or its size, is not taken, and leaves nothing in the store."""
    token = place.hand_over(b"evil")
    with pytest.raises(RefusedError, match="changed while"):
        place.store.take(place.handover, token, digest=digest(b"good"), size_bytes=4)
    with pytest.raises(RefusedError, match="not the file"):
        place.store.take(place.handover, token, digest=digest(b"evil"), size_bytes=5)
    with pytest.raises(RefusedError, match="limit"):
        place.store.take(place.handover, token, digest=digest(b"evil"), size_bytes=MAX_ARTIFACT_BYTES + 1)
    assert place.files() == []


def test_a_later_change_by_the_worker_reaches_nobody(place: Place) -> None:
    """The worker keeps a descriptor of what it handed over; writing to it changes the store's copy in nothing."""
    token = place.hand_over(b"good")
    with (place.handover / token).open("r+b") as held:
        place.store.take(place.handover, token, digest=digest(b"good"), size_bytes=4)
        held.write(b"evil")
        held.flush()
    assert place.store.read(digest(b"good")) == b"good"


@pytest.mark.parametrize("trick", ["file link", "directory link", "hard fifo", "missing"])
def test_nothing_is_reached_through_a_trick(place: Place, trick: str) -> None:
    """No symlink leads the daemon to another file, and no special file makes it wait."""
    secret = place.base / "secret"
    secret.write_bytes(b"the secret")
    token = secrets.token_hex(16)
    handover = place.handover
    if trick == "file link":
        (handover / token).symlink_to(secret)
    elif trick == "directory link":
        outside = place.base / "outside"
        outside.mkdir()
        (outside / token).write_bytes(b"the secret")
        handover = place.base / "session" / "link"
        handover.symlink_to(outside)
    elif trick == "hard fifo":
        os.mkfifo(handover / token)
    with pytest.raises(RefusedError):
        place.store.take(handover, token, digest=digest(b"the secret"), size_bytes=10)
    assert place.files() == []


def test_a_copy_is_never_written_through_a_link(place: Place) -> None:
    """A worker that puts a symlink where its copy is to be gets an error, and the link's target is as it was."""
    place.take(b"content")
    victim = place.base / "victim"
    victim.write_bytes(b"untouched")
    token = secrets.token_hex(16)
    (place.handover / token).symlink_to(victim)
    with pytest.raises(StorageError):
        place.store.give(digest(b"content"), place.handover, token)
    assert victim.read_bytes() == b"untouched"


def test_damage_is_noticed_and_mended(place: Place) -> None:
    """Content whose bytes changed on disk is not handed out; writing it again puts it right."""
    place.take(b"content")
    path = place.base / "artifacts" / digest(b"content")[:2] / digest(b"content")
    path.chmod(0o600)
    path.write_bytes(b"c0ntent")
    with pytest.raises(StorageError, match="damaged"):
        place.store.read(digest(b"content"))
    place.take(b"content")
    assert place.store.read(digest(b"content")) == b"content"


def test_the_sweep_leaves_what_is_known(place: Place) -> None:
    """What no row means is removed, also what a killed writer had begun; the rest stays."""
    for data in (b"a", b"b", b"c"):
        place.take(data)
    (place.base / "artifacts" / "incoming-left").write_bytes(b"half")
    ArtifactStore(place.base / "artifacts").prepare()
    assert place.store.sweep({digest(b"b")}) == 2
    assert place.files() == [digest(b"b")]


# ---------------------------------------------------------------- the index


def info(name: str = "design.md", *, tree: str = "s-top", number: int = 0, **fields: object) -> ArtifactInfo:
    base = ArtifactInfo(
        artifact=f"art-{number:010}", name=name, tree=tree, session=tree, digest=digest(b""), at_ns=number + 1
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def session(name: str, tree: str) -> SessionInfo:
    return SessionInfo(session=name, agent="a", model="m", state="ended", tree=tree)


def test_versions_count_within_a_tree(tmp_path: Path) -> None:
    """A name's versions count from 1 in each tree; the newest, one by number, and one by id are found."""

    async def work(index: ArtifactIndex) -> None:
        for number, tree in enumerate(("s-top", "s-top", "s-other")):
            added = await index.add(info(tree=tree, number=number), sources=(), key="")
            assert isinstance(added, ArtifactInfo) and added.version == (2 if number == 1 else 1)
        assert [a.version for a in await index.find("design.md", tree="s-top")] == [2]
        assert [a.version for a in await index.find("design.md@1", tree="s-top")] == [1]
        assert [a.version for a in await index.find("design.md", tree="s-top", version=1)] == [1]
        assert [a.tree for a in await index.find("art-0000000002", tree="")] == ["s-other"]
        assert await index.find("art-0000000002", tree="s-top") == []
        assert len(await index.find("design.md", tree="")) == 2 and len(await index.find("art-", tree="")) == 3
        assert await index.find("design.md@x", tree="s-top") == []
        assert [a.version for a in await index.select(tree="s-top", limit=9)] == [2]
        assert [a.version for a in await index.select(tree="s-top", all_versions=True, limit=9)] == [2, 1]
        assert await index.select(kind="prd", limit=9) == []

    run(tmp_path, work)


def test_a_key_gives_one_artifact(tmp_path: Path) -> None:
    """The same key again changes nothing; keys that are empty do not count."""

    async def work(index: ArtifactIndex) -> None:
        first = await index.add(info(number=1), sources=(), key="s-top/k")
        assert await index.add(info(number=2), sources=(), key="s-top/k") == first == await index.by_key("s-top/k")
        assert len(await index.select(all_versions=True, limit=9)) == 1

    run(tmp_path, work)


def test_sources_are_artifacts_of_the_tree(tmp_path: Path) -> None:
    """What something was made from is kept by id, and must be there, in the same tree."""

    async def work(index: ArtifactIndex) -> None:
        await index.add(info("prd.md", number=1), sources=(), key="")
        made = await index.add(info(number=2), sources=("prd.md", "prd.md@1"), key="")
        assert isinstance(made, ArtifactInfo) and made.sources == ("art-0000000001",)
        missing = await index.add(info(tree="s-other", number=3), sources=("prd.md",), key="")
        assert isinstance(missing, Refusal) and missing.code == "no_such_artifact"

    run(tmp_path, work)


def test_artifacts_go_with_the_last_of_their_tree(tmp_path: Path) -> None:
    """They stay while one session of the tree is on record; content that another tree means stays as well."""

    async def work(index: ArtifactIndex, database: Database) -> None:
        for name in ("s-top", "s-child"):
            await database.put_session(session(name, "s-top"))
        await index.add(info(number=1, digest=digest(b"own")), sources=(), key="")
        await index.add(info(number=2, digest=digest(b"shared")), sources=(), key="")
        await index.add(info(tree="s-other", number=3, digest=digest(b"shared")), sources=(), key="")
        assert await index.tree_of("s-child") == "s-top" and await index.tree_of("s-gone") == "s-gone"
        await database.delete_session("s-top")
        assert await index.forget_tree("s-top") == []
        await database.delete_session("s-child")
        assert await index.forget_tree("s-top") == [digest(b"own")]
        assert await index.digests() == {digest(b"shared")}

    run(tmp_path, lambda index: work(index, index._database))


def test_what_lies_in_a_file_is_known_when_its_artifact_is_gone(tmp_path: Path) -> None:
    """By the file's place, the newest first, whatever became of the session; only what its tree has."""

    async def work(index: ArtifactIndex, database: Database) -> None:
        await database.put_session(session("s-top", "s-top"))
        kept = SinkDelivery(sink="files", place="/p/design.md")
        for number, text in enumerate((b"one", b"two", b"one again"), 1):
            await index.add(info(number=number, digest=digest(text)), sources=(), key="")
            await index.note_delivery([f"art-{number:010}"], ["s-top"], kept, is_file=True)
        await index.note_delivery(["art-0000000002"], ["s-top"], SinkDelivery(sink="hook", place="/p/hook", at_ns=9))
        await index.note_delivery(["art-0000000002"], ["s-other"], kept, is_file=True)
        lost = SinkDelivery(sink="files", state="failed", place="/p/failed", at_ns=9)
        await index.note_delivery(["art-0000000002"], ["s-top"], lost, is_file=True)
        newest = [digest(b"one again"), digest(b"two"), digest(b"one")]
        assert await index.delivered_to("/p/design.md") == newest
        await database.delete_session("s-top")
        await index.forget_tree("s-top")
        assert await index.digests() == set() and await index.delivered_to("/p/design.md") == newest
        assert await index.delivered_to("/p/hook") == await index.delivered_to("/p/failed") == []

    run(tmp_path, lambda index: work(index, index._database))


def test_what_is_remembered_of_files_is_bounded(tmp_path: Path) -> None:
    """Each file has its newest contents, and all of them together no more than the limit."""

    async def work(_: ArtifactIndex, database: Database) -> None:
        index = ArtifactIndex(database, max_digests=3, max_placed=7)
        for number in range(1, 13):
            await index.add(info(number=number, digest=digest(b"%d" % number)), sources=(), key="")
            kept = SinkDelivery(sink="files", place=f"/p/{number % 4}", at_ns=number)
            await index.note_delivery([f"art-{number:010}"], ["s-top"], kept, is_file=True)
            await index.note_delivery([f"art-{number:010}"], ["s-top"], replace(kept, place="/p/all"), is_file=True)
        assert await index.delivered_to("/p/all") == [digest(b"%d" % number) for number in (12, 11, 10)]
        assert await index.delivered_to("/p/0") == [digest(b"12")]
        assert await index.delivered_to("/p/1") == [] and await index.delivered_to("/p/2") == [digest(b"10")]
        for number in range(1, 8):
            kept = SinkDelivery(sink="files", place=f"/q/{number}", at_ns=number)
            await index.note_delivery(["art-0000000001"], ["s-top"], kept, is_file=True)
        assert await index.delivered_to("/p/all") == await index.delivered_to("/p/2") == []

    run(tmp_path, lambda index: work(index, index._database))


def test_what_was_delivered_before_is_known_after_the_migration() -> None:
    """Files, that is: the database knew them by the artifacts that lay there."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    number = next(n for n, text in enumerate(MIGRATIONS) if "CREATE TABLE placed" in text)
    for migration in MIGRATIONS[:number]:
        connection.executescript(migration)
    for artifact in ("a", "b"):
        connection.execute(
            "INSERT INTO artifacts (artifact, tree, session, agent, name, version, kind, digest, size_bytes, sources,"
            " at_ns, write_key, step) VALUES (?1, 't', 's', '', ?1, 1, 'file', ?2, 1, '', 1, ?1, '')",
            (artifact, f"d-{artifact}"),
        )
    rows = [("a", "f", "delivered", "/p"), ("b", "f", "failed", "/p"), ("b", "w", "delivered", "http://x")]
    for artifact, sink, state, place in rows:
        connection.execute("INSERT INTO deliveries VALUES (?, ?, ?, ?, '', 1, 1)", (artifact, sink, state, place))
    connection.executescript(MIGRATIONS[number])
    assert connection.execute("SELECT place, digest FROM placed").fetchall() == [("/p", "d-a")]
    connection.close()


def run(base: Path, work: object) -> None:
    async def life() -> None:
        database = Database.open(base / "otto.db")
        try:
            await work(ArtifactIndex(database))  # type: ignore[operator]
        finally:
            await database.flush()
            database.close()

    asyncio.run(life())
