"""Where files live, and what a private directory must be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import ConfigError, OttoError, StorageError
from ottod.settings.paths import SOCKET_PATH_MAX_BYTES, Paths, prepare_private_dir

HOME = {"HOME": "/home/ada"}


def test_defaults_follow_xdg() -> None:
    """With XDG variables each directory is `otto` below them."""
    env = HOME | {"XDG_RUNTIME_DIR": "/run/u", "XDG_STATE_HOME": "/st", "XDG_CONFIG_HOME": "/cf"}
    paths = Paths.from_env(env, uid=7)
    assert str(paths.runtime_dir) == "/run/u/otto"
    assert str(paths.state_dir) == "/st/otto"
    assert str(paths.config_home) == "/cf/otto"
    assert str(paths.config_file) == "/cf/otto/otto.yml"
    assert not paths.config_explicit
    assert paths.control_endpoint == "ipc:///run/u/otto/control.sock"
    assert paths.worker_endpoint == "ipc:///run/u/otto/worker.sock"


def test_defaults_without_xdg() -> None:
    """Without them: home, and /run/user/UID if it exists, else /tmp/otto-UID. Relative XDG values are ignored."""
    env = HOME | {"XDG_STATE_HOME": "relative", "XDG_RUNTIME_DIR": "./run"}
    paths = Paths.from_env(env, uid=7, is_dir=lambda path: path == "/run/user/7")
    assert str(paths.runtime_dir) == "/run/user/7/otto"
    assert str(paths.state_dir) == "/home/ada/.local/state/otto"
    assert str(paths.agents_dir) == "/home/ada/.config/otto/agents"
    assert str(Paths.from_env(env, uid=7, is_dir=lambda _: False).runtime_dir) == "/tmp/otto-7"


def test_overrides_win() -> None:
    """Each OTTO_ variable names its directory itself, and OTTO_CONFIG marks the file as asked for."""
    env = {"OTTO_RUNTIME_DIR": "/a", "OTTO_STATE_DIR": "/b", "OTTO_CONFIG_HOME": "/c", "OTTO_CONFIG": "/d.yml"}
    paths = Paths.from_env(env, uid=7)
    found = (paths.runtime_dir, paths.state_dir, paths.config_home, paths.config_file)
    assert [str(p) for p in found] == ["/a", "/b", "/c", "/d.yml"]
    assert paths.config_explicit


@pytest.mark.parametrize("name", ["OTTO_RUNTIME_DIR", "OTTO_STATE_DIR", "OTTO_CONFIG_HOME", "OTTO_CONFIG"])
def test_a_relative_override_is_refused(name: str) -> None:
    """Daemon and client would resolve it against different directories."""
    with pytest.raises(ConfigError, match=f"{name} is a relative path: some/dir"):
        Paths.from_env(HOME | {name: "some/dir"}, uid=7)


def test_no_home_is_an_error_with_a_mend() -> None:
    """Without HOME and XDG variables there is no place for state."""
    with pytest.raises(ConfigError, match="neither HOME nor XDG_CONFIG_HOME") as caught:
        Paths.from_env({}, uid=7)
    assert caught.value.mend


def test_socket_paths_have_the_kernels_bound() -> None:
    """The longest runtime directory that fits is accepted; one byte more is refused by name and number."""
    room = SOCKET_PATH_MAX_BYTES - len("/control.sock")
    fits = "/" + "x" * (room - 1)
    assert len(str(Paths.from_env(HOME | {"OTTO_RUNTIME_DIR": fits}, uid=7).control_socket)) == 107
    with pytest.raises(ConfigError, match="has 108 bytes; the kernel accepts 107") as caught:
        Paths.from_env(HOME | {"OTTO_RUNTIME_DIR": fits + "x"}, uid=7)
    assert caught.value.mend == "set OTTO_RUNTIME_DIR to a shorter directory"
    with pytest.raises(ConfigError, match="has 108 bytes"):
        Paths.from_env(HOME | {"OTTO_RUNTIME_DIR": fits[:-1] + "é"}, uid=7)


NAMES = ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "OTTO_RUNTIME_DIR", "OTTO_STATE_DIR", "OTTO_CONFIG")


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=130), max_size=6))
def test_any_environment_gives_absolute_paths_or_a_config_error(env: dict[str, str]) -> None:
    """No value of these variables gives a relative path or another exception."""
    try:
        paths = Paths.from_env(env, uid=7, is_dir=lambda _: False)
    except ConfigError as error:
        assert error.mend
    else:
        assert all(p.is_absolute() for p in (paths.runtime_dir, paths.state_dir, paths.config_file))


def _paths(base: Path) -> Paths:
    env = {"HOME": str(base), "OTTO_RUNTIME_DIR": str(base / "run" / "deep"), "OTTO_STATE_DIR": str(base / "state")}
    return Paths.from_env(env, uid=os.getuid())


def test_prepare_makes_private_directories(tmp_path: Path) -> None:
    """All directories exist afterwards with mode 0700, and preparing again changes nothing."""
    paths = _paths(tmp_path)
    for _ in range(2):
        paths.prepare()
        for made in (paths.runtime_dir, paths.state_dir, paths.sessions_dir):
            assert made.stat().st_mode & 0o777 == 0o700


def _make_symlink(path: Path) -> None:
    (path.parent / "target").mkdir(mode=0o700)
    path.symlink_to(path.parent / "target")


def _make_open(path: Path) -> None:
    path.mkdir()
    path.chmod(0o750)


REFUSED = [
    (_make_symlink, "is a symlink"),
    (_make_open, r"is open to other users \(mode 0750\)"),
    (lambda path: path.write_text(""), "is not a directory"),
    (lambda path: path.symlink_to("nowhere"), "is a symlink"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=["symlink", "open", "file", "dangling"])
def test_a_directory_that_is_not_private_is_refused(tmp_path: Path, make: object, message: str) -> None:
    """A symlink, a file, and a directory others can enter are refused and left as they are."""
    path = tmp_path / "dir"
    assert callable(make)
    make(path)
    before = path.lstat()
    with pytest.raises(ConfigError, match=message) as caught:
        prepare_private_dir(path, uid=os.getuid(), variable="OTTO_STATE_DIR")
    assert "OTTO_STATE_DIR" in caught.value.mend
    assert path.lstat() == before


def test_another_owners_directory_is_refused(tmp_path: Path) -> None:
    """A directory that somebody else made under our name is not ours."""
    (tmp_path / "dir").mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=f"belongs to uid {os.getuid()}, not to uid {os.getuid() + 1}"):
        prepare_private_dir(tmp_path / "dir", uid=os.getuid() + 1, variable="OTTO_RUNTIME_DIR")


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """A file in the way gives one line and the ancestor to look at; this holds for root, too."""
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"cannot create directory .*file/state: .*/file is not a directory"
    ) as caught:
        prepare_private_dir(tmp_path / "file" / "state", uid=os.getuid(), variable="OTTO_STATE_DIR")
    assert "OTTO_STATE_DIR" in caught.value.mend


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_unwritable_parent_is_a_storage_error(tmp_path: Path) -> None:
    """Without leave to create it the directory is named, and the parent to make writable."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="permission denied") as caught:
            prepare_private_dir(tmp_path / "state", uid=os.getuid(), variable="OTTO_STATE_DIR")
    finally:
        tmp_path.chmod(0o700)
    assert str(tmp_path) in caught.value.mend


def test_read_only_places_are_an_expected_error() -> None:
    """/proc takes no directories from anybody: an OttoError, never another exception."""
    with pytest.raises(OttoError, match="cannot create directory /proc/otto"):
        prepare_private_dir(Path("/proc/otto"), uid=os.getuid(), variable="OTTO_STATE_DIR")


def test_paths_and_settings_load_no_yaml_and_no_sdk() -> None:
    """A client that only needs the endpoint pays for neither."""
    code = (
        "import sys, ottod.settings.paths, ottod.settings.daemon;"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'yaml', 'anthropic', 'openai', 'zmq', 'asyncio', 'typer'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
