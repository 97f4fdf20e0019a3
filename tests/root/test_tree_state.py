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
