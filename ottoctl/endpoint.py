"""Where the daemon listens, and whether anybody does: checked before a ZeroMQ socket could wait in vain."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping

from ottod.errors import OttoError, UnreachableError
from ottod.settings.paths import Paths, default_runtime_dir

IPC = "ipc://"
ENDPOINT_VARIABLE = "OTTO_ENDPOINT"
TOKEN_FILE = "control.token"
LOCK_FILE = "ottod.lock"
MAX_TOKEN_CHARS = 256
START_MEND = "start one: `ottoctl daemon start`"


def resolve_endpoint(endpoint: str | None, env: Mapping[str, str] | None = None) -> str:
    """The endpoint to use: the one given (`ipc://…` or a socket's path), else OTTO_ENDPOINT, else the default."""
    env = os.environ if env is None else env
    endpoint = endpoint or env.get(ENDPOINT_VARIABLE, "")
    if not endpoint:
        return Paths.from_env(env, uid=os.getuid()).control_endpoint
    if endpoint.startswith("/"):
        return IPC + endpoint
    if not endpoint.startswith(IPC) or not endpoint[len(IPC) :].startswith("/"):
        raise OttoError(
            f"not an endpoint: {endpoint}",
            mend="give an absolute socket path, as in ipc:///run/user/1000/otto/control.sock",
            code="usage",
        )
    return endpoint


def read_token(endpoint: str) -> str:
    """The daemon's token, from the file beside its socket; empty if it cannot be read."""
    directory = os.path.dirname(endpoint.removeprefix(IPC))
    try:
        with open(os.path.join(directory, TOKEN_FILE), encoding="ascii", errors="replace") as file:
            return file.read(MAX_TOKEN_CHARS).strip()
    except OSError:
        return ""


def check_listening(endpoint: str) -> None:
    """Returns if something listens at the endpoint that may be this user's daemon.

    Raises: UnreachableError, with the reason, if nothing does, or if somebody else may.
    """
    path = endpoint.removeprefix(IPC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except BlockingIOError:
                pass
        _check_owner(os.path.dirname(path))
    except OSError as error:
        reason, mend = _explain(path, error)
        raise UnreachableError(reason, mend=mend) from error


def _check_owner(directory: str) -> None:
    """Raises UnreachableError if another user can listen where a daemon of this one listens by default.

    Below /tmp whoever comes first makes the directory. One that somebody names (`--endpoint`, OTTO_ENDPOINT,
    OTTO_RUNTIME_DIR) is theirs to choose: only where nobody chose can they be led astray.
    """
    uid = os.getuid()
    if directory != str(default_runtime_dir(os.environ, uid)):
        return
    found = os.lstat(directory)
    mend = "remove it, or set OTTO_RUNTIME_DIR to another directory (OTTO_ENDPOINT, if that is the daemon you mean)"
    if found.st_uid != uid:
        raise UnreachableError(
            f"{directory} belongs to uid {found.st_uid}, not to uid {uid}: who listens there is not your daemon",
            mend=mend,
        )
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o022:
        raise UnreachableError(f"{directory} is not a directory that only you can write", mend=mend)


def is_held(endpoint: str) -> bool:
    """Whether a daemon has the endpoint's directory, listening or not: one that is starting, or on its way out.

    Taking its lock, if only to try, could keep a daemon from starting; the kernel tells who holds it as well.
    """
    try:
        of_lock = os.stat(os.path.join(os.path.dirname(endpoint.removeprefix(IPC)), LOCK_FILE))
        place = f"{os.major(of_lock.st_dev):02x}:{os.minor(of_lock.st_dev):02x}:{of_lock.st_ino}"
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            return any(place in line.split() for line in locks)
    except OSError:
        return False


def _explain(path: str, error: OSError) -> tuple[str, str]:
    if error.errno == errno.ENOENT:
        return f"no daemon is running (no socket at {path})", START_MEND
    if error.errno == errno.ECONNREFUSED:
        return f"no daemon is running (nobody listens at {path}, which an earlier one left)", START_MEND
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"not allowed to use {path}", "run as the user that started the daemon"
    reason = error.strerror or str(error)
    return f"cannot use {path}: {reason.lower()}", "check --endpoint, OTTO_ENDPOINT and OTTO_RUNTIME_DIR"
