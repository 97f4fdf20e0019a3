"""Files that somebody else may have made: read if they are regular ones, never waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ottod.settings.regular_file import read_regular
from ottod.settings.text_file import read_bytes


@pytest.mark.parametrize("follows_links", [True, False])
def test_only_regular_files_are_read(tmp_path: Path, follows_links: bool) -> None:
    """A fifo that nobody writes to, a device without an end, a directory and a socket are none."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"text")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", "/dev/zero", tmp_path, tmp_path / "socket"):
            with pytest.raises(OSError, match="not a regular file"):
                read_regular(path, max_bytes=10, follows_links=follows_links)
    assert read_regular(tmp_path / "file", max_bytes=4, follows_links=follows_links) == b"text"
    for path in (tmp_path / "nowhere", f"{tmp_path}/a\0b", tmp_path / "file" / "below"):
        with pytest.raises(OSError):
            read_regular(path, max_bytes=10, follows_links=follows_links)


def test_links_are_followed_where_they_may_be(tmp_path: Path) -> None:
    """To a regular file; one to anything else is not opened either way."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    for name, target in (("to fifo", "fifo"), ("to device", "/dev/zero"), ("to nothing", "nothing")):
        (tmp_path / name).symlink_to(target)
        for follows_links in (True, False):
            with pytest.raises(OSError):
                read_regular(tmp_path / name, max_bytes=10, follows_links=follows_links)
    assert read_regular(tmp_path / "link", max_bytes=10, follows_links=True) == b"text"
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "link", max_bytes=10, follows_links=False)


def test_a_file_is_not_read_beyond_its_bound(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_regular(tmp_path / "large", max_bytes=10, follows_links=False)


def test_a_text_file_may_be_a_link(tmp_path: Path) -> None:
    """People keep their definitions elsewhere, and link to them."""
    (tmp_path / "file").write_bytes(b"a: 1")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link") == b"a: 1"
