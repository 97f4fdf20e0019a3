"""The state of a directory: another one after every change, the same one as long as there is none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ottod.root import tree_state as module
from ottod.root.tree_state import tree_state


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def same_size_and_time(place: Path) -> None:
    before = (place / "a").stat()
    # An older kernel's files have times that stand still for some milliseconds.
    while (place / "a").stat().st_ctime_ns == before.st_ctime_ns:
        (place / "a").write_text("Two")
        os.utime(place / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a new file": lambda place: write(place / "new", ""),
    "a new file below": lambda place: write(place / "b" / "c" / "new", ""),
    "another content": lambda place: write(place / "a", "longer than before"),
    "another content of the same size and time": same_size_and_time,
    "a file is gone": lambda place: (place / "a").unlink(),
    "another name": lambda place: (place / "a").rename(place / "z"),
    "another mode": lambda place: (place / "a").chmod(0o755),
    "a link": lambda place: (place / "link").symlink_to("a"),
    "an empty directory": lambda place: (place / "empty").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_makes_another_state(tmp_path: Path, change: Callable[[Path], object]) -> None:
    write(tmp_path / "a", "one")
    write(tmp_path / "b" / "c" / "d", "two")
    before = tree_state(str(tmp_path))
    assert before and tree_state(str(tmp_path)) == before
    change(tmp_path)
    assert tree_state(str(tmp_path)) not in ("", before)


def test_what_tools_make_for_themselves_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "a", "one")
    before = tree_state(str(tmp_path))
    for name in ("__pycache__", "node_modules", ".venv"):
        write(tmp_path / name / "x", "made")
    # The directories themselves are there; what is in them is not looked at.
    assert tree_state(str(tmp_path)) == before


def test_a_commit_makes_another_state_and_git_is_not_run(tmp_path: Path) -> None:
    """Though no file has changed: history is part of what there is to find out. Also from a directory below."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    write(tmp_path / "below" / "a", "one")
    subprocess.run([*git, "init", "-q"], check=True)
    below = str(tmp_path / "below")
    before = tree_state(below)
    subprocess.run([*git, "add", "."], check=True)
    assert tree_state(below) == before
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    assert tree_state(below) not in ("", before)


def test_what_is_too_large_or_not_there_has_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tree_state(str(tmp_path / "nowhere")) == ""
    for n in range(4):
        write(tmp_path / f"f{n}", "")
    monkeypatch.setattr(module, "MAX_FILES", 3)
    assert tree_state(str(tmp_path)) == ""


HEADS: dict[str, Callable[[Path], object]] = {
    "a fifo": lambda git: os.mkfifo(git / "HEAD"),
    "a link to a fifo": lambda git: (os.mkfifo(git / "fifo"), (git / "HEAD").symlink_to("fifo")),
    "a link to what has no end": lambda git: (git / "HEAD").symlink_to("/dev/zero"),
    "a branch that is a fifo": lambda git: (os.mkfifo(git / "main"), write(git / "HEAD", "ref: main\n")),
    "too long": lambda git: write(git / "HEAD", "a" * 5000),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_a_head_that_is_no_file_is_not_waited_for(tmp_path: Path, head: Callable[[Path], object]) -> None:
    """Whoever works in the directory can put one there. What cannot be read has no state."""
    (tmp_path / ".git").mkdir()
    head(tmp_path / ".git")
    assert tree_state(str(tmp_path)) == ""


@pytest.mark.parametrize("name", ["refs/heads/none", "refs/heads/a\0b", "a/" * 200 + "b", "HEAD/below", "../x"])
def test_a_branch_without_a_file_has_a_state(tmp_path: Path, name: str) -> None:
    """One without a commit, or one whose commit stands elsewhere; a name that can be none is none either."""
    write(tmp_path / ".git" / "HEAD", f"ref: {name}\n")
    assert tree_state(str(tmp_path))


def test_a_repository_that_is_a_fifo_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".git")
    assert tree_state(str(tmp_path))
