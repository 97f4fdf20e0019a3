"""What root knows in secret: keys and other secrets, and the redactor that is made of them.

Root is started with keys in its environment. The kernel shows a process's first environment to everybody of the same
user, so root takes them out of there before it does anything else, and the vault is where they are. A root that
becomes another program hands them on through a sealed file in memory, which only the program after it has.

Keys in files and credentials are read again whenever a session needs one: whoever changes a file changes the key.
What has been a key stays one for the redactor, as long as root lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping

from ottod.core.redaction import MAX_SECRET_CHARS, MIN_SECRET_CHARS, Redactor, shapes_only
from ottod.errors import ConfigError
from ottod.isolation.environment_block import blot_out
from ottod.protocol.birth import Tracing
from ottod.settings.daemon import DaemonSettings
from ottod.settings.keys import known_secrets, secret, secret_variables
from ottod.telemetry.log import Log

VARIABLE = "OTTOD_SECRETS_FD"
"""The descriptor that a root leaves its successor, in the environment."""
MAX_HANDED_BYTES = 4 * 1024 * 1024
MAX_KNOWN = 64
"""Secrets that are looked for; of those that were replaced, the oldest are forgotten."""
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Vault:
    """Root's secrets. What blocks is meant for threads; several may learn at a time."""

    def __init__(
        self,
        settings: DaemonSettings,
        environ: MutableMapping[str, str],
        *,
        blot_out: Callable[[Iterable[str]], None] = blot_out,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._blot_out = blot_out
        self._taken = _inherited(environ)
        self._known: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()
        self.redactor = shapes_only(has_shapes=settings.redaction.shapes)
        self.complaints: dict[str, str] = {}
        """Why a secret of the settings is not there, by name."""

    @property
    def environ(self) -> dict[str, str]:
        """The environment as it was before anything was taken out."""
        return {**self._environ, **self._taken}

    @property
    def secrets(self) -> dict[str, str]:
        """Everything that is looked for: by the provider's or the secret's name, or that and a number."""
        return self._names

    def open(self, settings: DaemonSettings) -> None:
        """Takes what these settings name out of the environment and learns what they say. Blocks.

        Raises: OSError if what was taken can still be read in `/proc`; all else is done by then.
        """
        self._settings = settings
        names = [name for name in secret_variables(settings) if name in self._environ]
        self._taken |= {name: self._environ.pop(name) for name in names}
        found, self.complaints = known_secrets(settings, self.environ)
        self.learn(found)
        if names:
            self._blot_out(names)

    def secret(self, name: str) -> str:
        """A secret of the settings. Blocks. Raises ConfigError."""
        value = secret(name, self._settings, self.environ)
        self.learn({name: value})
        return value

    def learn(self, secrets: Mapping[str, str]) -> None:
        """These are secrets: they are looked for from now on."""
        with self._lock:
            shapes = self._settings.redaction.shapes
            usable = {v: n for n, v in secrets.items() if MIN_SECRET_CHARS <= len(v) <= MAX_SECRET_CHARS}
            new = {value: name for value, name in usable.items() if value not in self._known}
            if not new and self.redactor.has_shapes == shapes:
                return
            self._known.update(new)
            while len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
            names: dict[str, str] = {}
            for value, name in self._known.items():
                names[name if name not in names else f"{name}-{len(names)}"] = value
            self._names = names
            self.redactor = Redactor.of(names, has_shapes=shapes)

    def hand_on(self) -> None:
        """Leaves what was taken out of the environment to the program that this process is about to become."""
        data = json.dumps(self._taken).encode()
        fd = os.memfd_create("otto-secrets", os.MFD_ALLOW_SEALING)
        os.write(fd, data)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        self._environ[VARIABLE] = str(fd)


def tracing_of(settings: DaemonSettings, vault: Vault, log: Log) -> Tracing | None:
    """Where spans go; None if traces are off, or a header's secret is not there. Blocks."""
    if not settings.telemetry.traces.enabled:
        return None
    try:
        headers = {header: vault.secret(name) for header, name in settings.telemetry.traces.headers.items()}
    except ConfigError as error:
        log.warning(f"no traces are sent: {error}")
        return None
    return Tracing(
        endpoint=settings.telemetry.traces.endpoint,
        headers=headers,
        sample_ratio=settings.telemetry.traces.sample_ratio,
        timeout_s=settings.telemetry.traces.timeout_s,
    )


def open_vault(vault: Vault, settings: DaemonSettings, log: Log) -> None:
    """Opens it by these settings, and says what is wrong with them. Blocks."""
    try:
        vault.open(settings)
    except OSError as error:
        log.warning(f"keys in this process's environment can be read in /proc: {error.strerror or error}")
    for name, why in vault.complaints.items():
        log.warning(f"secret {name}: {why}")


def _inherited(environ: MutableMapping[str, str]) -> dict[str, str]:
    """What an earlier root left to this one; the descriptor is closed."""
    number = environ.pop(VARIABLE, "")
    if not number.isdigit():
        return {}
    try:
        with os.fdopen(int(number), "rb") as handed:
            handed.seek(0)
            if fcntl.fcntl(handed, fcntl.F_GET_SEALS) != SEALS:
                return {}
            left = json.loads(handed.read(MAX_HANDED_BYTES))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in left.items()} if isinstance(left, dict) else {}
