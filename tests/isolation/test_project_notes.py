"""Finding and reading OTTO.md: the nearest one within the project, and nothing outside of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ottod.isolation.project_notes import MAX_READ_BYTES, ProjectNotes, find_notes, notes_directory


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / ".git").mkdir(parents=True)
    (root / "part" / "deep").mkdir(parents=True)
    (tmp_path / "OTTO.md").write_text("above the project")
    return root


def find(directory: Path) -> ProjectNotes | None:
    return find_notes(str(directory), home=str(directory.parents[-1] / "nobody"))


def text(directory: Path) -> str:
    found = find(directory)
    assert found is not None and not found.problem, found
    return found.text


def test_the_nearest_counts_up_to_the_repositorys_root(repository: Path) -> None:
    deep = repository / "part" / "deep"
    assert find(deep) is None and notes_directory(str(deep), home="/nobody") == str(repository)
    (repository / "OTTO.md").write_text("of all")
    assert text(deep) == "of all"
    (repository / "part" / "OTTO.md").write_text("\ufeffof the part\n")
    assert text(deep) == "of the part\n" and text(repository) == "of all"
    assert notes_directory(str(deep), home="/nobody") == str(repository / "part")
    (repository / "part" / "OTTO.md").write_text(" \n")
    assert find(deep) is None, "an empty one says that there is nothing to say"


def test_without_a_repository_only_the_directory_itself(tmp_path: Path) -> None:
    (tmp_path / "OTTO.md").write_text("x")
    (tmp_path / "below").mkdir()
    assert find(tmp_path / "below") is None and text(tmp_path) == "x"
    assert find_notes(str(tmp_path), home=str(tmp_path)) is None, "the home directory is no project"
    assert find_notes(str(tmp_path / "gone")) is None


def test_a_link_may_stay_inside_and_not_leave(repository: Path) -> None:
    (repository / "docs.md").write_text("inside")
    notes = repository / "part" / "OTTO.md"
    notes.symlink_to("../docs.md")
    assert text(repository / "part") == "inside"
    for target in (
        "../../OTTO.md",
        "/etc/passwd",
        str(repository.parent / "OTTO.md"),
        "nowhere.md",
        "/proc/self/environ",
    ):
        notes.unlink()
        notes.symlink_to(target)
        found = find(repository / "part")
        assert found is not None and found.problem and not found.text, target
    (repository / "OTTO.md").write_text("of all")
    assert find(repository / "part") == found, "what is in sight is what is meant"


def test_what_is_no_text_is_refused(repository: Path) -> None:
    notes = repository / "OTTO.md"
    os.mkfifo(notes)
    assert (found := find(repository)) is not None and found.problem
    notes.unlink()
    notes.mkdir()
    assert (found := find(repository)) is not None and found.problem
    notes.rmdir()
    notes.write_bytes(b"a\0b")
    assert (found := find(repository)) is not None and "no text" in found.problem
    notes.write_bytes(b"x" * (MAX_READ_BYTES + 1))
    assert (found := find(repository)) is not None and found.problem and not found.text
    notes.write_bytes(b"x" * MAX_READ_BYTES)
    assert len(text(repository)) == MAX_READ_BYTES


def test_ottos_own_directories_are_hidden(repository: Path) -> None:
    own = repository / "state"
    own.mkdir()
    (own / "secret").write_text("x")
    (repository / "OTTO.md").symlink_to("state/secret")
    found = find_notes(str(repository), hidden=(str(own),), home="/nobody")
    assert found is not None and found.problem and not found.text
