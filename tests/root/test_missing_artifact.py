"""Whoever asks for an artifact that there is not is told which one was meant, and whose it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from ottod.protocol.artifacts import ArtifactInfo
from ottod.root import missing_artifact as module
from ottod.root.missing_artifact import missing_artifact
from ottod.storage.artifact_index import ArtifactIndex
from ottod.storage.database import Database

CASES = [
    # what is asked for, in which tree, which version; what is said, and what helps
    (
        "desing.md",
        "",
        0,
        "there is no artifact desing.md",
        "did you mean 'design.md'? `SHOW design.md --session s-b`",
    ),
    ("desing.md", "s-a", 0, "there is no artifact desing.md", "'design.md'? `SHOW design.md --session s-a`"),
    ("notes.md", "s-a", 0, "the tree of s-a has no artifact notes.md; s-b has one", "`SHOW notes.md --session s-b`"),
    ("art-03", "s-a", 0, "the tree of s-a has no artifact art-03; s-b has one", "`SHOW notes.md --session s-b`"),
    ("design.md", "s-z", 0, "has no artifact design.md; s-a and s-b have one", "`SHOW design.md --session s-a`"),
    ("note.md", "s-a", 0, "the tree of s-a has no artifact note.md", "did you mean 'notes.md' of another one, s-b?"),
    ("design.md", "s-a", 7, "no artifact design.md@7: of design.md there are 2 versions", "`SHOW design.md@2`"),
    ("design.md@7", "s-a", 0, "no artifact design.md@7: of design.md there are 2 versions", "`SHOW design.md@2`"),
    ("notes.md", "", 2, "there is no artifact notes.md@2: of notes.md there is 1 version", "`SHOW notes.md@1`"),
    ("qqqq", "s-a", 0, "there is no artifact qqqq", "see `ottoctl artifact list --session s-a`"),
    ("qqqq", "s-z", 0, "there is no artifact qqqq", "see `ottoctl artifact list`"),
    ("art-99", "", 0, "there is no artifact art-99", "see `ottoctl artifact list`"),
]
KEPT = ("design.md", "s-a"), ("design.md", "s-a"), ("plan.md", "s-a"), ("notes.md", "s-b"), ("design.md", "s-b")


def info(number: int, name: str, tree: str) -> ArtifactInfo:
    return ArtifactInfo(
        artifact=f"art-{number:02}", tree=tree, session=tree, name=name, kind="design", digest="0" * 64, at_ns=number
    )


@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]} in {c[1] or 'all'} v{c[2]}" for c in CASES])
def test_what_is_said(tmp_path: Path, case: tuple[str, str, int, str, str]) -> None:
    """The nearest name, the tree that has it, or how many versions there are."""
    reference, tree, version, said, mend = case

    async def work() -> None:
        database = Database.open(tmp_path / "otto.db")
        try:
            index = ArtifactIndex(database)
            for number, (name, of) in enumerate(KEPT):
                await index.add(info(number, name, of), sources=(), key="")
            error = await missing_artifact(index, reference, tree=tree, version=version, in_thread=asyncio.to_thread)
        finally:
            await database.flush()
            database.close()
        assert error.code == "no_such_artifact" and said in error.message, str(error)
        assert mend.replace("SHOW", "ottoctl artifact show") in error.mend, error.mend

    asyncio.run(work())


def test_names_are_compared_on_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand long names take half a second, which root's loop does not have."""
    on: list[threading.Thread] = []

    def nearest(word: str, known: Iterable[str]) -> str:
        on.append(threading.current_thread())
        return ""

    async def work() -> None:
        database = Database.open(tmp_path / "otto.db")
        try:
            index = ArtifactIndex(database)
            await index.add(info(1, "design.md", "s-a"), sources=(), key="")
            await missing_artifact(index, "desing.md", tree="s-a", version=0, in_thread=asyncio.to_thread)
        finally:
            await database.flush()
            database.close()

    monkeypatch.setattr(module, "nearest", nearest)
    asyncio.run(work())
    assert len(on) == 2 and threading.main_thread() not in on
