"""Starting the daemon from a client."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping

from ottoctl.endpoint import ENDPOINT_VARIABLE, check_listening, resolve_endpoint
from ottod.errors import UnreachableError
from ottod.settings.interpreter import program
from ottod.settings.paths import Paths

OWN_DAEMON = "`ottoctl daemon stop` first, or set OTTO_RUNTIME_DIR for a daemon of its own"

START_TIMEOUT_S = 30.0


def daemon_command(verb: str) -> list[str]:
    """The command line that runs the daemon of this very installation."""
    return program("ottod", verb)


RETRY_S = 0.2
"""Between attempts to start a daemon where another one is coming or going."""
LOG_MEND = "see the reason above, or run it in the foreground: `ottoctl daemon run`"


def can_start(endpoint: str) -> bool:
    """Whether a daemon started now would listen there: only at the place that the environment names."""
    unaddressed = {name: value for name, value in os.environ.items() if name != ENDPOINT_VARIABLE}
    return endpoint == resolve_endpoint(None, unaddressed)


def differences(config_file: str, state_dir: str, env: Mapping[str, str]) -> list[str]:
    """What a daemon that runs has otherwise than one would that was started in this environment."""
    paths = Paths.from_env(env, uid=os.getuid())
    pairs = (("configuration", config_file, paths.config_file), ("state", state_dir, paths.state_dir))
    return [
        f"its {what} is {has}, not {here}"
        for what, has, here in pairs
        if has and os.path.realpath(has) != os.path.realpath(here)
    ]


def start_daemon(env: Mapping[str, str] | None = None, *, attempts: int = 60) -> bool:
    """Starts a daemon in the background and returns when it is ready; False if another start was quicker.

    Raises UnreachableError with the daemon's own reason when it does not start.
    """
    done = _start(env)
    while done.returncode != 0 and "already runs" in done.stderr and (attempts := attempts - 1) > 0:
        # One that has no socket any more is on its way out, or has none yet.
        time.sleep(RETRY_S)
        if _listens(env):
            return False
        done = _start(env)
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason, mend = _reason(said)
        raise UnreachableError(f"ottod did not start: {reason or f'status {done.returncode}'}", mend=mend or LOG_MEND)
    return True


def _start(env: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            daemon_command("start"),
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"ottod was not ready within {START_TIMEOUT_S:g} s", mend=LOG_MEND) from error
    except OSError as error:
        raise UnreachableError(f"cannot start ottod: {error.strerror}", mend=LOG_MEND) from error


def _listens(env: Mapping[str, str] | None) -> bool:
    """Whether a daemon listens where one that is started with this environment would."""
    unaddressed = {name: value for name, value in (env or os.environ).items() if name != ENDPOINT_VARIABLE}
    try:
        check_listening(resolve_endpoint(None, unaddressed))
    except UnreachableError:
        return False
    return True


def descriptor_of(pid: int) -> int:
    """A pidfd of the process; -1 if it is gone or not ours to look at."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def wait_gone(pidfd: int, endpoint: str, *, timeout_s: float) -> bool:
    """Waits until the process behind the pidfd (-1: unknown) has ended and nobody listens; closes the pidfd."""
    deadline = time.monotonic() + timeout_s
    if pidfd >= 0:
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                return False
        finally:
            os.close(pidfd)
    while time.monotonic() < deadline:
        try:
            check_listening(endpoint)
        except UnreachableError:
            return True
        time.sleep(0.05)
    return False


def _reason(lines: list[str]) -> tuple[str, str]:
    """The error and the mend among the daemon's last words."""
    mend = next((line.removeprefix("mend:").strip() for line in lines if line.startswith("mend:")), "")
    others = [line for line in lines if not line.startswith("mend:")]
    return (others[-1].removeprefix("ottod: ").removeprefix("error: ") if others else ""), mend
