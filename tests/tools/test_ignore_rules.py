"""What ignore files say of paths, against git itself, and that none of them stops the process."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ottod.tools.ignore_rules import IgnoreRules

PARTS = st.just("**") | st.text(alphabet="ab*?", min_size=1, max_size=4).filter(lambda part: "**" not in part)
"""Two stars beside other signs are one, or two, depending on what git has cut off before it looks at them."""
LINES = st.builds(
    lambda negated, rooted, parts, is_dir: negated * "!" + rooted * "/" + "/".join(parts) + is_dir * "/",
    st.booleans(),
    st.booleans(),
    st.lists(PARTS, min_size=1, max_size=3),
    st.booleans(),
)
PATHS = ("a", "b", "ab", "aab", "a/b", "b/a", "a/b/a", "aa/bb/ab", "ab/a/b/aab")


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@pytest.mark.parametrize(
    "line", ["[z-a]", "[[:alpha:]]x", "!", "a\\", "caf\udcff", "*a" * 100_000, "", "# a", "[]"], ids=ascii
)
def test_a_line_that_cannot_be_read_says_nothing(line: str) -> None:
    """The others count."""
    rules = IgnoreRules([line[:200_000], "kept"])
    assert rules.verdict("kept") is True and rules.verdict("ax") is None


def test_the_last_word_counts() -> None:
    """A slash at the end is for directories alone."""
    rules = IgnoreRules(["*.log", "!keep.log", "out/"])
    assert [rules.verdict(p) for p in ("a/x.log", "keep.log", "out/", "out", "x")] == [True, False, True, None, None]


def test_no_pattern_runs_away() -> None:
    """Python's own expressions would take longer than anybody lives."""
    assert IgnoreRules(["*a" * 20 + "*b", "a/**/" * 9 + "b"]).verdict("a" * 250) is None
    assert IgnoreRules(["**/a/" * 12 + "b"]).verdict("a/" * 60 + "c") is None


def test_names_that_are_no_text_are_looked_at_too() -> None:
    """As they come from the file system."""
    assert IgnoreRules(["*.log"]).verdict("caf\udcff.log") is True


@settings(max_examples=12, deadline=None)
@example(["?", "!a"])
@example(["a/**", "!a/b"])
@example(["*/", "!a/"])
@example(["a/**/"])
@given(st.lists(LINES, min_size=1, max_size=4))
def test_it_is_what_git_says(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    """Of files whose directories are not left out: those are not looked into."""
    place = tmp_path_factory.mktemp("repository")
    _git(place, "init", "--quiet")
    (place / ".gitignore").write_text("\n".join(lines) + "\n")
    asked = _git(
        place, "check-ignore", "--no-index", "--stdin", "--verbose", "--non-matching", stdin="\n".join(PATHS)
    )
    for path, said in zip(PATHS, asked.splitlines(), strict=True):
        source = said.split("\t")[0].split(":", 2)[2]
        ours = IgnoreRules(lines).covers(path)
        assert ours == (bool(source) and not source.startswith("!")), (lines, path, said)


def _git(place: Path, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=place, input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout
