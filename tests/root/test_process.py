"""What a session leaves behind on disk, removed whatever it is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from ottod.root.process import remove_tree

AS_AN_OWNER = """
import ctypes, sys
from pathlib import Path
from ottod.root.process import remove_tree

# Root may do anything with a file, an owner only what its mode says; and so may the programs that it runs.
PR_SET_SECUREBITS, NO_ROOT = 28, 1
libc = ctypes.CDLL(None)
libc.prctl(PR_SET_SECUREBITS, ctypes.c_ulong(NO_ROOT), *[ctypes.c_ulong(0)] * 3)
version_3, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capset(version_3, nothing) == 0
sys.exit(0 if remove_tree(Path(sys.argv[1])) else 3)
"""


def removed_by_its_owner(path: Path) -> bool:
    status = subprocess.run([sys.executable, "-c", AS_AN_OWNER, str(path)], check=False).returncode
    assert status in (0, 3)
    return status == 0


def test_directories_that_their_owner_may_not_change_are_removed(tmp_path: Path) -> None:
    """As Go leaves them for its modules, and as anybody can leave them; nothing that a link leads to is touched."""
    outside = tmp_path / "outside"
    outside.mkdir(0o500)
    (tmp_path / "tmp/mod/pkg/deep").mkdir(parents=True)
    (tmp_path / "tmp/mod/pkg/file.go").touch(0o444)
    (tmp_path / "tmp/mod/link").symlink_to(outside)
    (tmp_path / "tmp/closed/inner").mkdir(parents=True)
    (tmp_path / "tmp/closed/inner/file").touch()
    for name, mode in (("mod/pkg/deep", 0), ("mod/pkg", 0o555), ("mod", 0o555), ("closed", 0), ("", 0o500)):
        (tmp_path / "tmp" / name).chmod(mode)
    assert removed_by_its_owner(tmp_path / "tmp")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert outside.stat().st_mode & 0o777 == 0o500


def test_a_link_in_its_place_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """What it leads to was never the session's: neither its content nor its modes change."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "below").mkdir(parents=True)
    (elsewhere / "below").chmod(0o500)
    link = tmp_path / "s-1"
    link.symlink_to(elsewhere)
    assert remove_tree(link) and not link.is_symlink()
    assert stat.S_IMODE((elsewhere / "below").stat().st_mode) == 0o500


def test_what_cannot_be_removed_is_said(tmp_path: Path) -> None:
    """Its own directory is not the session's to open."""
    (tmp_path / "closed" / "tree").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o500)
    assert not removed_by_its_owner(tmp_path / "closed" / "tree")
    (tmp_path / "closed").chmod(0o700)
    assert remove_tree(tmp_path / "closed")
    assert remove_tree(tmp_path / "never")


def test_a_tree_that_is_deeper_than_an_interpreter_can_follow(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    fd = os.open(tmp_path / "tree", os.O_PATH)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        above, fd = fd, os.open("d", os.O_PATH, dir_fd=fd)
        os.close(above)
    os.chmod(f"/proc/self/fd/{fd}", 0)
    os.close(fd)
    assert removed_by_its_owner(tmp_path / "tree")
