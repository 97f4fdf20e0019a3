"""Where clients look for their daemon, and whom they take for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ottoctl.endpoint import check_listening, resolve_endpoint
from ottod.errors import UnreachableError

SOMEBODY = 4242


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default runtime directory, with somebody who listens in it."""
    for name in ("OTTO_RUNTIME_DIR", "OTTO_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    directory = tmp_path / "otto"
    directory.mkdir(mode=0o700)
    return directory


def listen(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(directory / "control.sock"))
    listener.listen()
    return listener


def test_a_private_directory_of_ones_own_is_trusted(default: Path) -> None:
    """As the daemon makes it."""
    with listen(default):
        check_listening(resolve_endpoint(None))


def test_a_directory_that_others_can_write_is_not(default: Path) -> None:
    """Whoever can put a socket there could be sent the task, and answer."""
    with listen(default):
        default.chmod(0o777)
        with pytest.raises(UnreachableError, match="is not a directory that only you can write"):
            check_listening(resolve_endpoint(None))


def test_a_link_is_not(default: Path, tmp_path: Path) -> None:
    """It leads wherever its owner wants, tomorrow."""
    default.rename(tmp_path / "elsewhere")
    default.symlink_to("elsewhere")
    with listen(default), pytest.raises(UnreachableError, match="only you can write"):
        check_listening(resolve_endpoint(None))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_directory_is_not(default: Path) -> None:
    """Below /tmp whoever comes first makes it. One that is named is its user's choice."""
    with listen(default):
        os.chown(default, SOMEBODY, SOMEBODY)
        with pytest.raises(UnreachableError, match=f"belongs to uid {SOMEBODY}, not to uid {os.getuid()}"):
            check_listening(resolve_endpoint(None))
        named = default.with_name("named")
        default.rename(named)
        check_listening(f"ipc://{named}/control.sock")
