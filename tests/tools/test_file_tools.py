from __future__ import annotations

import asyncio
import os
import threading
import time

import msgspec
import pytest

from ottod.core.redaction import Redactor
from ottod.errors import ToolError
from ottod.tools.arguments import decode_arguments
from ottod.tools.fs_edit import FS_EDIT
from ottod.tools.fs_list import FS_LIST
from ottod.tools.fs_read import FS_READ
from ottod.tools.fs_write import FS_WRITE
from tests.fakes.session_place import SessionPlace, run


def test_reading_numbers_lines_and_goes_on(place: SessionPlace) -> None:
    """Lines are numbered as editors do; a part says how to get the next one."""
    (place.project / "f").write_text("one\ntwo\x0cstill two\r\nthree\n")
    whole = place.call(FS_READ, '{"path": "f"}')
    assert whole.text == "     1\tone\n     2\ttwo\x0cstill two\n     3\tthree"
    assert not whole.truncated
    part = place.call(FS_READ, '{"path": "f", "offset": 2, "limit": 1}')
    assert part.text == "     2\ttwo\x0cstill two\n[lines 2 to 2 of 3; go on with offset=3]"
    assert part.truncated
    with pytest.raises(ToolError, match="only 3 lines"):
        place.call(FS_READ, '{"path": "f", "offset": 4}')


def test_reading_is_bounded(place: SessionPlace) -> None:
    """Neither many lines nor one endless line exceed the bound on output."""
    (place.project / "many").write_text("line\n" * 50_000)
    (place.project / "long").write_text("x" * 1_000_000)
    for name in ("many", "long"):
        output = place.call(FS_READ, f'{{"path": "{name}", "limit": 100000}}', max_output_bytes=5000)
        assert len(output.text.encode()) <= 5000
    assert "go on with offset=" in place.call(FS_READ, '{"path": "many"}', max_output_bytes=5000).text


def test_a_part_of_a_secret_is_not_read_either(place: SessionPlace) -> None:
    """Lines of a private key are marked one by one, wherever reading begins; a long line ends in no half of a key."""
    key = "-----BEGIN PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END PRIVATE KEY-----\n"
    (place.project / "k").write_text(f"a\n{key}b\n")
    assert place.call(FS_READ, '{"path": "k", "offset": 3, "limit": 1}').text.startswith(
        "     3\t[redacted:private-key]\n"
    )
    assert place.call(FS_READ, '{"path": "k", "offset": 6}').text == "     6\tb"
    (place.project / "long").write_text("x" * 1980 + " ghp_" + "a1B2" * 9 + " y\n")
    assert "ghp_" not in place.call(FS_READ, '{"path": "long"}').text


class Witness(Redactor):
    """Keeps in which threads it looked for secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def text(self, text: str) -> str:
        self.threads.add(threading.get_ident())
        return super().text(text)

    def keys_hidden(self, text: str) -> str:
        self.threads.add(threading.get_ident())
        return super().keys_hidden(text)


def test_the_loop_goes_on_while_a_file_is_looked_through(place: SessionPlace) -> None:
    """A line of megabytes takes its time: the worker must be able to say meanwhile that it lives."""
    (place.project / "long").write_text("x" * 5000)
    witness = Witness()
    context = msgspec.structs.replace(place.context(), redactor=witness)
    assert "not shown" in run(FS_READ.run(decode_arguments(FS_READ, '{"path": "long"}'), context)).text
    assert witness.threads and threading.get_ident() not in witness.threads


def test_binary_and_empty_files_are_told_apart(place: SessionPlace) -> None:
    """A binary file is refused with a hint, an empty one is said to be empty, other encodings are shown."""
    (place.project / "binary").write_bytes(b"\x7fELF\0\0\0")
    (place.project / "empty").touch()
    (place.project / "utf16").write_bytes("grün\n".encode("utf-16"))
    (place.project / "latin").write_bytes("grün\n".encode("latin-1"))
    with pytest.raises(ToolError, match="binary"):
        place.call(FS_READ, '{"path": "binary"}')
    assert place.call(FS_READ, '{"path": "empty"}').text == "empty is empty"
    assert place.call(FS_READ, '{"path": "utf16"}').text == "     1\tgrün"
    assert place.call(FS_READ, '{"path": "latin"}').text == "     1\tgrün"


def test_reading_a_fifo_does_not_block(place: SessionPlace) -> None:
    """A fifo without a writer is refused at once."""
    os.mkfifo(place.project / "fifo")
    started_at = time.monotonic()
    with pytest.raises(ToolError, match="not a regular file"):
        place.call(FS_READ, '{"path": "fifo"}')
    assert time.monotonic() - started_at < 10.0


def test_writing_creates_and_replaces(place: SessionPlace) -> None:
    """A new file and its directories are made; an old one is replaced; both are said."""
    assert place.call(FS_WRITE, '{"path": "a/b.txt", "content": "x\\n"}').text == "created a/b.txt (1 line, 2 bytes)"
    assert place.call(FS_WRITE, '{"path": "a/b.txt", "content": ""}').text == "replaced a/b.txt (0 lines, 0 bytes)"
    with pytest.raises(ToolError, match="outside the working directory"):
        place.call(FS_WRITE, '{"path": "../outside/new", "content": "x"}')
    with pytest.raises(ToolError, match="not valid"):
        place.call(FS_WRITE, '{"path": "a", "content": "\\ud800"}')


def test_editing_replaces_exactly_one(place: SessionPlace) -> None:
    """One match is replaced; none or several are errors that say where to look, and change nothing."""
    path = place.project / "f.py"
    path.write_text("def f(a):\n    return a + 1\n\ndef g(a):\n    return a - 1\n")
    output = place.call(FS_EDIT, '{"path": "f.py", "old": "a + 1", "new": "a + 2"}')
    assert output.text == "replaced 1 occurrence in f.py, the first at line 2"
    before = path.read_text()
    with pytest.raises(ToolError, match=r"occurs 2 times in f.py \(lines 1, 4\)"):
        place.call(FS_EDIT, '{"path": "f.py", "old": "(a)", "new": "(b)"}')
    with pytest.raises(ToolError, match=r"nearest lines are\n +5\t    return a - 1"):
        place.call(FS_EDIT, '{"path": "f.py", "old": "\\treturn a-1", "new": "return 0"}')
    with pytest.raises(ToolError, match="nothing would change"):
        place.call(FS_EDIT, '{"path": "f.py", "old": "a", "new": "a"}')
    assert path.read_text() == before
    assert (
        "2 occurrences"
        in place.call(FS_EDIT, '{"path": "f.py", "old": "(a)", "new": "(b)", "replace_all": true}').text
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"one\r\ntwo\r\nthree\r\n", b"one\r\n2\r\n2b\r\nthree\r\n"),
        (b"one\ntwo\nthree", b"one\n2\n2b\nthree"),
        (b"\xef\xbb\xbfone\ntwo\nthree\n", b"\xef\xbb\xbfone\n2\n2b\nthree\n"),
        ("grün\ntwo\nthree\n".encode("latin-1"), "grün\n2\n2b\nthree\n".encode("latin-1")),
        ("one\r\ntwo\r\nthree".encode("utf-16"), "one\r\n2\r\n2b\r\nthree".encode("utf-16")),
    ],
)
def test_editing_keeps_line_endings_and_encoding(place: SessionPlace, before: bytes, after: bytes) -> None:
    """Only the replaced text changes: not the line endings, not the byte order mark, not the encoding."""
    (place.project / "f").write_bytes(before)
    place.call(FS_EDIT, '{"path": "f", "old": "\\ntwo\\n", "new": "\\n2\\n2b\\n"}')
    assert (place.project / "f").read_bytes() == after


def test_an_edit_that_the_encoding_cannot_hold_is_refused(place: SessionPlace) -> None:
    """A character that Latin-1 lacks is not written as something else."""
    (place.project / "f").write_bytes("grün".encode("latin-1"))
    with pytest.raises(ToolError, match="latin-1"):
        place.call(FS_EDIT, '{"path": "f", "old": "gr", "new": "€"}')
    assert (place.project / "f").read_bytes() == "grün".encode("latin-1")


def test_parallel_edits_of_one_file_are_all_made(place: SessionPlace) -> None:
    """A model that edits one file by several calls at once loses none of them."""
    (place.project / "f").write_text("".join(f"<{number}>\n" for number in range(16)))

    async def work() -> None:
        context = place.context()
        await asyncio.gather(
            *(
                FS_EDIT.run(FS_EDIT.arguments(path="f", old=f"<{number}>", new=f"[{number}]"), context)
                for number in range(16)
            )
        )

    run(work())
    assert (place.project / "f").read_text() == "".join(f"[{number}]\n" for number in range(16))


def test_listing_respects_ignore_files(place: SessionPlace) -> None:
    """What .gitignore leaves out, at any depth, is not listed unless asked for; links are not followed."""
    for name in ("src/a.py", "src/a.pyc", "src/gen/x.py", "build/out", "keep.log", "x.log", ".git/config"):
        (place.project / name).parent.mkdir(parents=True, exist_ok=True)
        (place.project / name).touch()
    (place.project / ".gitignore").write_text("*.log\n!keep.log\n/build/\n*.pyc\n")
    (place.project / "src" / ".gitignore").write_text("gen/\n")
    (place.project / "link").symlink_to(place.outside)
    assert place.call(FS_LIST, "{}").text.split() == [".gitignore", "keep.log", "link@", "src/"]
    deep = place.call(FS_LIST, '{"recursive": true}').text.split()
    assert deep == [".gitignore", "keep.log", "link@", "src/", "src/.gitignore", "src/a.py"]
    below = place.call(FS_LIST, '{"path": "src", "recursive": true}').text.split()
    assert below == ["src/.gitignore", "src/a.py"]
    assert place.call(FS_LIST, '{"path": "build"}').text.split() == ["build/out"], "whoever names it wants to see it"
    everything = place.call(FS_LIST, '{"recursive": true, "all": true}').text.split()
    assert {"build/out", "x.log", ".git/config", "src/gen/x.py"} <= set(everything)
    assert not any("secret" in line for line in everything)


def test_listing_is_bounded(place: SessionPlace) -> None:
    """Both the limit on entries and the bound on output hold and are said."""
    for number in range(300):
        (place.project / f"file-{number:04}").touch()
    few = place.call(FS_LIST, '{"limit": 10}')
    assert few.truncated and few.text.splitlines()[-1].startswith("[only the first 10 entries")
    short = place.call(FS_LIST, "{}", max_output_bytes=1000)
    assert short.truncated and len(short.text.encode()) <= 1000
    (place.project / "empty").mkdir()
    assert place.call(FS_LIST, '{"path": "empty"}').text == "(empty)"


def test_names_that_are_no_text_can_be_shown(place: SessionPlace) -> None:
    """A file whose name is not UTF-8 does not break the listing's encoding."""
    (place.project / os.fsdecode(b"bad-\xff")).touch()
    assert place.call(FS_LIST, "{}").text.encode() == "bad-\ufffd".encode()


def test_file_tools_run_off_the_loop(place: SessionPlace) -> None:
    """File work happens in a thread, so a slow disk does not hold up the session's loop."""
    seen: list[str] = []
    real = place.files

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def read(self, path: str, *, max_bytes: int) -> bytes:
            seen.append(threading.current_thread().name)
            return real.read(path, max_bytes=max_bytes)

    (place.project / "f").write_text("x")
    place.files = Watched()  # type: ignore[assignment]
    place.call(FS_READ, '{"path": "f"}')
    assert seen and seen[0] != threading.main_thread().name
