"""A diff says all that changes, in the form that every tool reads, and hides nothing from who reads it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core import text_diff
from ottod.core.text_diff import MAX_DIFF_BYTES, shown_diff, unified_diff


def patched(before: str, diff: str) -> str:
    """What the hunks make of a text: an oracle that knows the format and nothing of how it was made."""
    old, new, at = before.split("\n"), [], 0
    lines = diff.split("\n")[2:-1]
    for number, line in enumerate(lines):
        if line.startswith("@@"):
            found = re.match(r"@@ -(\d+)(?:,(\d+))? \+", line)
            assert found is not None
            start = int(found[1]) - (0 if found[2] == "0" else 1)
            new += old[at:start]
            at = start
        elif line.startswith("\\"):
            continue
        else:
            text = line[1:]
            ends = not (number + 1 < len(lines) and lines[number + 1].startswith("\\"))
            if line[0] in " -":
                assert old[at] == text, (line, old, at)
                at += 1
            if line[0] in " +":
                new.append(text)
                if not ends:
                    new.append(None)  # type: ignore[arg-type]
    new += old[at:]
    joined = "\n".join(part for part in new if part is not None)
    return joined if None not in new else joined.removesuffix("\n")


texts = st.lists(st.sampled_from(["a", "b", "c", "", "d e"]), max_size=12).map(
    lambda lines: "".join(f"{x}\n" for x in lines)
)


@given(texts, texts, st.booleans())
def test_the_hunks_make_the_new_text_of_the_old(before: str, after: str, are_many: bool) -> None:
    limit, text_diff.MAX_COMPARED_LINES = text_diff.MAX_COMPARED_LINES, 3 if are_many else 1500
    try:
        diff = unified_diff("f", before.encode(), after.encode())
    finally:
        text_diff.MAX_COMPARED_LINES = limit
    assert (diff == "") == (before == after)
    if diff:
        assert diff.startswith("--- a/f\n+++ b/f\n@@ ")
        assert patched(before, diff) == after


def test_as_people_know_it() -> None:
    before = "".join(f"{n}\n" for n in range(1, 21))
    after = before.replace("10\n", "ten\n") + "end"
    assert unified_diff("a b.md", before.encode(), after.encode()) == (
        "--- a/a b.md\n+++ b/a b.md\n"
        "@@ -7,7 +7,7 @@\n 7\n 8\n 9\n-10\n+ten\n 11\n 12\n 13\n"
        "@@ -18,3 +18,4 @@\n 18\n 19\n 20\n+end\n\\ No newline at end of file\n"
    )
    assert unified_diff("n", None, b"x\n") == "--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+x\n"
    assert unified_diff("n", None, b"") == "--- /dev/null\n+++ b/n\nan empty file\n"
    assert unified_diff("n", b"x\n", b"") == "--- a/n\n+++ b/n\n@@ -1 +0,0 @@\n-x\n"
    assert "No newline" in unified_diff("n", b"x", b"x\n")
    assert unified_diff("n", b"\0", b"ab") == "--- a/n\n+++ b/n\nbinary: 1 byte becomes 2\n"
    assert unified_diff("n", b"\xff", b"ab").endswith("binary: 1 byte becomes 2\n")


@pytest.mark.parametrize("hidden", ["\u200b", "\u202e", "\x1b[8m", "\U000e0041", "\r", "\x85", "\u2028", "\ufeff"])
def test_what_cannot_be_seen_is_shown(hidden: str) -> None:
    diff = unified_diff("f", b"", f"be{hidden}fore\n".encode())
    assert f"be<U+{ord(hidden[0]):04X}>" in diff
    assert all(line.isprintable() for line in diff.split("\n"))


def test_a_long_one_is_cut_at_a_line_and_says_so() -> None:
    whole = unified_diff("f", b"", "".join(f"line {n}\n" for n in range(5000)).encode())
    shown = shown_diff(whole)
    assert len(shown.encode()) < MAX_DIFF_BYTES + 100
    lines = shown.splitlines()
    assert whole.splitlines()[: len(lines) - 1] == lines[:-1]
    assert lines[-1] == f"… {len(whole.splitlines()) - len(lines) + 1} more lines of the diff are not shown"
    assert shown_diff("") == "" and shown_diff("a\n") == "a\n"
    assert len(shown_diff("+" + "x" * 100_000)) < 1100
