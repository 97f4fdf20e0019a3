"""Where Otto keeps its files: a pure function of an environment, and the step that creates the directories.

    what        override            default
    runtime     OTTO_RUNTIME_DIR    $XDG_RUNTIME_DIR/otto, else /run/user/UID/otto, else /tmp/otto-UID
    state       OTTO_STATE_DIR      $XDG_STATE_HOME/otto, else ~/.local/state/otto
    config      OTTO_CONFIG_HOME    $XDG_CONFIG_HOME/otto, else ~/.config/otto
    daemon file OTTO_CONFIG         <config>/otto.yml

The runtime directory holds the sockets, the state directory what must survive a reboot. Both are private: owned by
this user, mode 0700, not a symlink. A directory that is not so is refused, never repaired: it may be shared by
design, or by an attacker. Relative XDG variables are ignored, as their specification demands; a relative OTTO_*
variable is an error, because daemon and client would resolve it differently.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from ottod.errors import ConfigError, StorageError

SOCKET_PATH_MAX_BYTES = 107
"""`sockaddr_un.sun_path` is 108 bytes, the last of them a NUL."""

PRIVATE_MODE = 0o700


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths of everything Otto touches outside a session's working directory."""

    runtime_dir: Path
    state_dir: Path
    config_home: Path
    config_file: Path
    config_explicit: bool = False
    """True when OTTO_CONFIG named the daemon's file: then its absence is an error."""
    uid: int

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str],
        *,
        uid: int,
        is_dir: Callable[[str], bool] = os.path.isdir,
    ) -> Paths:
        """The paths that this environment gives to this user. Creates nothing.

        `is_dir` answers whether /run/user/UID exists; it is asked only without XDG_RUNTIME_DIR.
        Raises: ConfigError for a relative override, a missing HOME, or a runtime directory whose socket paths
        exceed what the kernel accepts.
        """
        runtime_dir = _override(env, "OTTO_RUNTIME_DIR") or default_runtime_dir(env, uid, is_dir)
        config_home = _override(env, "OTTO_CONFIG_HOME") or _xdg(env, "XDG_CONFIG_HOME", ".config") / "otto"
        explicit = _override(env, "OTTO_CONFIG")
        paths = cls(
            runtime_dir=runtime_dir,
            state_dir=_override(env, "OTTO_STATE_DIR") or _xdg(env, "XDG_STATE_HOME", ".local/state") / "otto",
            config_home=config_home,
            config_file=explicit or config_home / "otto.yml",
            config_explicit=explicit is not None,
            uid=uid,
        )
        for socket in (paths.control_socket, paths.worker_socket):
            _check_socket_length(socket)
        return paths

    @property
    def control_socket(self) -> Path:
        return self.runtime_dir / "control.sock"

    @property
    def worker_socket(self) -> Path:
        return self.runtime_dir / "worker.sock"

    @property
    def control_endpoint(self) -> str:
        """The ZeroMQ endpoint that clients connect to."""
        return f"ipc://{self.control_socket}"

    @property
    def worker_endpoint(self) -> str:
        """The ZeroMQ endpoint that workers connect to."""
        return f"ipc://{self.worker_socket}"

    @property
    def token_file(self) -> Path:
        return self.runtime_dir / "control.token"

    @property
    def lock_file(self) -> Path:
        return self.runtime_dir / "ottod.lock"

    @property
    def log_file(self) -> Path:
        """Where a daemon that was started in the background writes its log."""
        return self.state_dir / "ottod.log"

    @property
    def ring_file(self) -> Path:
        return self.state_dir / "ring.wal"

    @property
    def database_file(self) -> Path:
        return self.state_dir / "otto.db"

    @property
    def sessions_dir(self) -> Path:
        return self.state_dir / "sessions"

    @property
    def artifacts_dir(self) -> Path:
        """The content of artifacts, by digest; what it means stands in the database."""
        return self.state_dir / "artifacts"

    @property
    def agents_dir(self) -> Path:
        """The user's own agents."""
        return self.config_home / "agents"

    def session_dir(self, session: str) -> Path:
        """A session's directory: its journal and what belongs to it."""
        return self.sessions_dir / session

    def prepare(self) -> None:
        """Creates the runtime and state directories, private, and checks those that exist.

        Raises: ConfigError for a directory that is a symlink, another user's, or open to others;
        StorageError for one that cannot be created or written.
        """
        prepare_private_dir(self.runtime_dir, uid=self.uid, variable="OTTO_RUNTIME_DIR")
        prepare_private_dir(self.state_dir, uid=self.uid, variable="OTTO_STATE_DIR")
        prepare_private_dir(self.sessions_dir, uid=self.uid, variable="OTTO_STATE_DIR")


def prepare_private_dir(path: Path, *, uid: int, variable: str) -> None:
    """Creates `path` with mode 0700, or checks that it is a private, writable directory of `uid`.

    `variable` is the environment variable that the mend names. Raises: ConfigError, StorageError.
    """
    elsewhere = f"or set {variable} to another directory"
    try:
        path.parent.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
        try:
            # The umask can only take bits away, and 0700 minus any of them fails the checks below.
            path.mkdir(mode=PRIVATE_MODE)
        except FileExistsError:
            pass
        found = path.lstat()
    except OSError as error:
        ancestor = _existing_ancestor(path)
        if os.path.isdir(ancestor):
            reason, mend = _reason(error), f"make {ancestor} writable, {elsewhere}"
        else:
            reason, mend = f"{ancestor} is not a directory", f"move it away, {elsewhere}"
        raise StorageError(f"cannot create directory {path}: {reason}", mend=mend) from error
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{path} is a symlink", mend=f"remove it so that a directory can be made, {elsewhere}")
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is not a directory", mend=f"move it away, {elsewhere}")
    if found.st_uid != uid:
        raise ConfigError(f"{path} belongs to uid {found.st_uid}, not to uid {uid}", mend=f"remove it, {elsewhere}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"{path} is open to other users (mode {mode:04o})", mend=f"chmod 700 {path}, {elsewhere}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StorageError(f"directory {path} is not writable", mend=f"chmod 700 {path}, {elsewhere}")


def _override(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name, "")
    if not value:
        return None
    if "\0" in value:
        raise ConfigError(f"{name} contains a NUL byte", mend=f"set {name} to an absolute path")
    path = Path(value)
    if not path.is_absolute():
        raise ConfigError(f"{name} is a relative path: {value}", mend=f"set {name} to an absolute path")
    return path


def _xdg(env: Mapping[str, str], name: str, below_home: str) -> Path:
    value = env.get(name, "")
    if value.startswith("/"):
        return Path(value)
    home = env.get("HOME", "")
    if not home.startswith("/"):
        raise ConfigError(f"neither HOME nor {name} is an absolute path", mend="set HOME to your home directory")
    return Path(home) / below_home


def default_runtime_dir(env: Mapping[str, str], uid: int, is_dir: Callable[[str], bool] = os.path.isdir) -> Path:
    """The runtime directory where none is named."""
    value = env.get("XDG_RUNTIME_DIR", "")
    if value.startswith("/"):
        return Path(value) / "otto"
    by_uid = f"/run/user/{uid}"
    return Path(by_uid) / "otto" if is_dir(by_uid) else Path(f"/tmp/otto-{uid}")


def _check_socket_length(socket: Path) -> None:
    length = len(os.fsencode(socket))
    if length > SOCKET_PATH_MAX_BYTES:
        raise ConfigError(
            f"socket path {socket} has {length} bytes; the kernel accepts {SOCKET_PATH_MAX_BYTES}",
            mend="set OTTO_RUNTIME_DIR to a shorter directory",
        )


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _existing_ancestor(path: Path) -> Path:
    """The nearest directory above that can be seen: the one that refused, as a rule."""
    return next((parent for parent in path.parents if os.path.lexists(parent)), Path("/"))
