"""Directories held open: what is done in them happens there, whatever their paths have come to mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ottod.isolation.directory import Directory
from ottod.isolation.mending import Watch

WAYS = [True, False]
"""By openat2, and name by name."""


@pytest.mark.parametrize("use_openat2", WAYS)
@pytest.mark.parametrize("path", ["link", "a/link", "a/link/c", "link/c", "a/..", "../a", "a/../../a", "a/file", "x"])
def test_only_real_directories_beneath_are_opened(tmp_path: Path, path: str, use_openat2: bool) -> None:
    """Neither a symlink, wherever on the way and wherever it leads, nor `..` is followed."""
    (tmp_path / "root/a/b/c").mkdir(parents=True)
    (tmp_path / "root/a/file").touch()
    (tmp_path / "root/link").symlink_to("a/b")
    (tmp_path / "root/a/link").symlink_to(tmp_path)
    root = Directory.open(str(tmp_path / "root"))
    with pytest.raises(OSError):
        root.below(path, use_openat2=use_openat2)
    found = root.below("a/b/c", use_openat2=use_openat2)
    assert (found.path, found.relative_to(root)) == (str(tmp_path / "root/a/b/c"), "a/b/c")


def test_a_long_way_down_is_walked(tmp_path: Path) -> None:
    """A path longer than the kernel takes in one piece is no hiding place."""
    name = "d" * 200
    here = os.open(tmp_path, os.O_PATH)
    for _ in range(30):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_PATH, dir_fd=here)
        os.close(here)
        here = below
    found = Directory.open(str(tmp_path)).below("/".join([name] * 30))
    assert (found.identity[0], found.identity[1]) == (os.fstat(here).st_dev, os.fstat(here).st_ino)
    os.close(here)


def test_a_directory_is_followed_where_it_goes(tmp_path: Path) -> None:
    """It tells where it is after a rename, and that it has left the tree, or is gone."""
    (tmp_path / "root/a").mkdir(parents=True)
    root = Directory.open(str(tmp_path / "root"))
    held = root.below("a")
    (tmp_path / "root/a").rename(tmp_path / "root/b")
    assert held.relative_to(root) == "b"
    (tmp_path / "root/b").rename(tmp_path / "rootless")
    assert held.relative_to(root) is None
    (tmp_path / "rootless").rmdir()
    assert held.relative_to(root) is None


@pytest.mark.parametrize("made", ["file", "directory", "symlink"])
@pytest.mark.parametrize("target", ["", "to/where"])
def test_a_name_becomes_what_it_was(tmp_path: Path, made: str, target: str) -> None:
    """Absent names are absent again and symlinks point where they did; a directory is put aside as it is."""
    place = tmp_path / "a"
    place.mkdir()
    if target:
        (place / "name").symlink_to(target)
    root, watch = Directory.open(str(tmp_path)), Watch()
    watch.add(root.below("a"), "name")
    assert watch.mend(root) == []
    (place / "name").unlink(missing_ok=True)
    if made == "file":
        (place / "name").write_text("x")
    elif made == "directory":
        (place / "name").mkdir()
        (place / "name/inside").touch()
    else:
        (place / "name").symlink_to("elsewhere")
    assert watch.mend(root) == [(str(place / "name"), True)]
    assert (os.readlink(place / "name") if target else os.path.lexists(place / "name")) == (target or False)
    assert len(list(place.glob("name.refused-*/inside"))) == (made == "directory")


def test_nothing_is_mended_outside_of_the_tree(tmp_path: Path) -> None:
    """A directory that its user has taken out of the tree is the user's."""
    (tmp_path / "root/a").mkdir(parents=True)
    root, watch = Directory.open(str(tmp_path / "root")), Watch()
    watch.add(root.below("a"), "name")
    (tmp_path / "root/a").rename(tmp_path / "mine")
    (tmp_path / "mine/name").touch()
    assert watch.mend(root) == []
    assert (tmp_path / "mine/name").exists()


def test_what_cannot_be_undone_is_said(tmp_path: Path) -> None:
    """In a file system that became read-only a name cannot be put right; the outcome says so."""
    (tmp_path / "a").mkdir()
    root, watch = Directory.open(str(tmp_path)), Watch()
    held = root.below("a")
    watch.add(held, "name")
    # A name that no system call takes stands for one that cannot be removed.
    watch.expected = [(held, "n" * 300, None)]
    assert watch.mend(root) == [(str(tmp_path / "a" / ("n" * 300)), False)]
