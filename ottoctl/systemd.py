"""Speaks to systemd the way its users do: through `systemctl`, for the user's own manager or for the system's.

Whether there is a systemd at all is asked of `systemctl` itself: it may be installed in a container that was not
booted with it, and a user's manager may be missing in a shell that `su` opened.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from ottoctl.service_unit import Scope
from ottod.errors import OttoError, RefusedError

CALL_TIMEOUT_S = 120.0
"""Longer than a unit may take to stop."""
UNMANAGED_MEND = "run the daemon without it: `ottoctl daemon start`"


class Systemd:
    """One manager: the calling user's (`--user`) or the system's."""

    def __init__(self, scope: Scope, *, env: Mapping[str, str], uid: int) -> None:
        self.scope = scope
        self._env = dict(env)
        # In a shell of `su` the variable is missing although the manager runs; the directory is always there.
        if scope == "user" and "XDG_RUNTIME_DIR" not in env and os.path.isdir(f"/run/user/{uid}"):
            self._env["XDG_RUNTIME_DIR"] = f"/run/user/{uid}"

    def version(self) -> str:
        """The manager's version. Raises RefusedError if there is no manager to speak to."""
        if shutil.which("systemctl", path=self._env.get("PATH", os.defpath)) is None:
            raise RefusedError("this machine has no systemd: there is no `systemctl`", mend=UNMANAGED_MEND)
        done = self._call("show", "--property=Version", "--value")
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
        said = _last_line(done.stderr) or f"systemctl ended with status {done.returncode}"
        if self.scope == "user" and "booted with systemd" not in said:
            raise RefusedError(
                f"this user's systemd does not answer: {said}",
                mend="log in as this user (su and sudo start no user manager), install for the system with "
                "`ottoctl service install --system` as root, or use `ottoctl daemon start`",
            )
        raise RefusedError(f"systemd does not answer: {said}", mend=UNMANAGED_MEND)

    def run(self, *arguments: str) -> str:
        """What a systemctl command printed. Raises OttoError with its last words when it fails."""
        done = self._call(*arguments)
        if done.returncode != 0:
            shown = " ".join(["systemctl", *self._scope_option, *arguments])
            reason = _last_line(done.stderr) or f"status {done.returncode}"
            raise OttoError(f"`{shown}` failed: {reason}", mend=self._log_mend(arguments))
        return done.stdout

    def try_run(self, *arguments: str) -> str:
        """The same where a failure means that there is nothing to do."""
        return self._call(*arguments).stdout

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """A unit's properties; also of a unit that does not exist, which then is not loaded."""
        lines = self.run("show", unit, f"--property={','.join(names)}").splitlines()
        return dict.fromkeys(names, "") | {name: value for name, _, value in (line.partition("=") for line in lines)}

    @property
    def _scope_option(self) -> list[str]:
        return ["--user"] if self.scope == "user" else []

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["systemctl", *self._scope_option, "--no-pager", "--no-ask-password", *arguments]
        try:
            return subprocess.run(
                argv,
                env=self._env | {"LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CALL_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OttoError(
                f"`{' '.join(argv)}` did not end within {CALL_TIMEOUT_S:g} s", mend="see `systemctl list-jobs`"
            ) from error
        except OSError as error:
            raise OttoError(f"cannot run systemctl: {error.strerror}", mend=UNMANAGED_MEND) from error

    def _log_mend(self, arguments: tuple[str, ...]) -> str:
        unit = next((a for a in arguments if a.endswith(".service")), "")
        option = "--user-unit" if self.scope == "user" else "--unit"
        return f"see `journalctl {option}={unit} --lines=50`" if unit else ""


def lingers(env: Mapping[str, str], uid: int) -> bool | None:
    """Whether the user's services run without a login; None when nobody knows."""
    if shutil.which("loginctl", path=env.get("PATH", os.defpath)) is None:
        return None
    try:
        done = subprocess.run(
            ["loginctl", "show-user", str(uid), "--property=Linger", "--value"],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip()) if done.returncode == 0 else None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
