"""What becomes of content that no row means any more."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ottod.protocol.artifacts import ArtifactInfo
from ottod.root.artifacts import Artifacts
from ottod.storage.artifact_index import ArtifactIndex
from ottod.storage.artifacts import ArtifactStore
from ottod.storage.database import Database


@pytest.mark.parametrize("damaged", ["otto.db.broken-1", ""], ids=["beside a damaged database", "otherwise"])
def test_content_goes_with_its_tree_unless_a_damaged_database_may_mean_it(tmp_path: Path, damaged: str) -> None:
    """Somebody may yet save that one's rows; then what they mean must be there."""
    digest = sha256(b"design").hexdigest()
    content = tmp_path / "artifacts" / digest[:2] / digest
    content.parent.mkdir(parents=True)
    content.write_bytes(b"design")
    said: list[str] = []
    if damaged:
        (tmp_path / damaged).touch()

    async def work() -> None:
        database = Database.open(tmp_path / "otto.db")
        try:
            context: Any = SimpleNamespace(
                database=database, sessions_dir=tmp_path / "sessions", in_thread=asyncio.to_thread, log=said.append
            )
            artifacts, index = Artifacts(context, ArtifactStore(tmp_path / "artifacts")), ArtifactIndex(database)
            made = ArtifactInfo(
                artifact="art-01", tree="s-a", session="s-a", name="design.md", kind="design", digest=digest, at_ns=1
            )
            await index.add(made, sources=(), key="")
            await artifacts.session_forgotten("s-a")
            assert not await index.digests()
            assert content.exists() == bool(damaged)
            await artifacts.sweep()
            assert content.exists() == bool(damaged) == bool(said)
        finally:
            await database.flush()
            database.close()

    asyncio.run(work())
