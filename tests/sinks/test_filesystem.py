"""Files are replaced over what Otto put there, and over nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.isolation.beneath import BeneathFiles
from ottod.protocol.sinks import Sink
from ottod.sinks.base import Undelivered
from ottod.sinks.filesystem import Filesystem, file_for
from tests.sinks.parcels import parcel


class Desk:
    """A working directory, what was delivered to each place of it, and a sink."""

    def __init__(self, root: Path, sink: Sink) -> None:
        self.root = root
        self.known: dict[str, list[str]] = {}
        self.files = BeneathFiles(str(root), durable=True)
        self.sink = Filesystem(sink, self.files, delivered_to=self._delivered_to)

    async def _delivered_to(self, place: str) -> list[str]:
        return self.known.get(place, [])

    def deliver(self, data: bytes, name: str = "design", version: int = 1) -> str:
        """What the receipt notes."""
        receipt = asyncio.run(self.sink.deliver(parcel(data, name=name, version=version)))
        self.known.setdefault(receipt.place, []).append(hashlib.sha256(data).hexdigest())
        return receipt.note


DEEDS = st.lists(st.tuples(st.sampled_from(["deliver", "edit", "remove"]), st.sampled_from([b"", b"a", b"b", b"cc"])))


@settings(max_examples=60, deadline=None)
@given(deeds=DEEDS)
def test_nobody_s_work_is_lost(deeds: list[tuple[str, bytes]]) -> None:
    """Whatever happens to the file between deliveries: it changes only if Otto wrote what is there, or nothing is."""
    with tempfile.TemporaryDirectory() as base:
        desk = Desk(Path(base), Sink(to="filesystem", path="out"))
        file = Path(base) / "out/design"
        theirs: bytes | None = None
        written: set[bytes] = set()
        for deed, data in deeds:
            if deed == "deliver":
                may = theirs is None or theirs == data or theirs in written
                try:
                    desk.deliver(data)
                except Undelivered as error:
                    assert error.code == "conflict" and error.is_final and not may
                    assert file.read_bytes() == theirs
                else:
                    assert may and file.read_bytes() == data
                    theirs = data
                    written.add(data)
            elif deed == "edit":
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data)
                theirs = data
            else:
                file.unlink(missing_ok=True)
                theirs = None
        assert sorted(p.name for p in Path(base).rglob("*") if p.is_file()) == (
            ["design"] if theirs is not None else []
        )
        desk.files.close()


def test_a_conflict_is_replaced_only_if_the_sink_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Sink(to="filesystem", path=".", on_conflict="replace"))
    (tmp_path / "design").write_text("mine")
    assert hashlib.sha256(b"mine").hexdigest() in desk.deliver(b"theirs")
    assert (tmp_path / "design").read_text() == "theirs" and not desk.deliver(b"theirs")
    desk.files.close()


def test_no_path_leads_out(tmp_path: Path) -> None:
    """Neither a link to a directory, nor one in the place of the file, nor one that appears meanwhile."""
    root, outside = tmp_path / "project", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "design").write_text("theirs")
    (root / "dir").symlink_to(outside)
    (root / "design").symlink_to(outside / "design")
    for where in ("dir", ".", ".git/hooks", ".otto"):
        desk = Desk(root, Sink(to="filesystem", path=where, on_conflict="replace"))
        with pytest.raises(Undelivered):
            desk.deliver(b"content")
        desk.files.close()
    assert (outside / "design").read_text() == "theirs" and len(list(outside.iterdir())) == 1
    assert not (root / ".git").exists() and not (root / ".otto").exists()


def test_files_have_places_of_their_own() -> None:
    sink = Sink(to="filesystem", path="docs/", files={"design": "d.md"})
    assert [file_for(sink, name) for name in ("design", "ticket")] == ["d.md", "docs/ticket"]
    assert file_for(Sink(to="filesystem", files={"design": "d.md"}), "ticket") == ""


def test_a_file_that_appears_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    """`create` makes a file or leaves what is there, and no temporary file."""
    files = BeneathFiles(str(tmp_path))
    files.create("a/b", b"1")
    with pytest.raises(Exception, match="there already"):
        files.create("a/b", b"2")
    (tmp_path / "dangling").symlink_to(tmp_path / "a/new")
    files.create("dangling", b"3")
    assert (tmp_path / "a/new").read_bytes() == b"3"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["b", "new"]
    files.close()
