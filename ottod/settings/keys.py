"""Provider keys: found in a file, in systemd's credentials, or in an environment variable; never stored."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ottod.errors import ConfigError, ProviderError
from ottod.settings.models import needs_key, providers
from ottod.settings.sections import DaemonSettings

MAX_KEY_BYTES = 16 * 1024


def api_key(provider: str, settings: DaemonSettings, env: Mapping[str, str]) -> str:
    """The key of a provider; empty when it needs none.

    Looked for in this order: `api_key_file`, `$CREDENTIALS_DIRECTORY/<variable or provider>` (systemd's
    LoadCredential), the environment variable `api_key_env`.
    Raises: ConfigError for a key file that is missing, empty or open to others; ProviderError `auth` when there is
    no key at all.
    """
    known = providers(settings)
    if provider not in known:
        raise ConfigError(f"unknown provider {provider!r}", mend=f"use one of: {', '.join(sorted(known))}")
    entry = known[provider]
    if entry.api_key_file:
        return _from_file(Path(os.path.expanduser(entry.api_key_file)))
    credential = _from_credentials(env, entry.api_key_env, provider)
    if credential:
        return credential
    key = env.get(entry.api_key_env, "").strip() if entry.api_key_env else ""
    if key:
        if not _is_sendable(key):
            raise ConfigError(
                f"the key in {entry.api_key_env} holds a space or control character", mend="set it anew"
            )
        return key
    if not needs_key(entry):
        return ""
    how = (
        f"set {entry.api_key_env} and restart the daemon with it (`ottoctl daemon stop`; a run starts it), or "
        if entry.api_key_env
        else ""
    )
    raise ProviderError(
        f"no API key for provider {provider!r}",
        code="auth",
        mend=f"{how}set providers.{provider}.api_key_file in otto.yml; or use a model of another provider",
    )


def _from_credentials(env: Mapping[str, str], variable: str, provider: str) -> str:
    directory = env.get("CREDENTIALS_DIRECTORY", "")
    if not directory.startswith("/"):
        return ""
    for name in filter(None, (variable, provider, f"{provider}_api_key")):
        path = Path(directory) / name
        if os.path.isfile(path):
            return _from_file(path, private=False)  # systemd guards this directory itself.
    return ""


def _from_file(path: Path, *, private: bool = True) -> str:
    file = str(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(f"cannot read the key file: {reason}", file=file, mend="check api_key_file") from error
    with os.fdopen(descriptor, "rb") as stream:
        # The mode is read from the open file: the path could change its meaning in between.
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError("the key file is not a regular file", file=file, mend="check api_key_file")
        mode = stat.S_IMODE(found.st_mode)
        if private and mode & 0o077:
            raise ConfigError(
                f"the key file is open to other users (mode {mode:04o})", file=file, mend=f"chmod 600 {file}"
            )
        data = stream.read(MAX_KEY_BYTES + 1)
    key = data.decode("utf-8", "replace").strip()
    if not key or len(data) > MAX_KEY_BYTES or not _is_sendable(key):
        raise ConfigError(
            "the key file does not hold one key on one line", file=file, mend="write only the key to it"
        )
    return key


def _is_sendable(key: str) -> bool:
    """Whether the key can stand in an HTTP header."""
    return key.isascii() and key.isprintable() and " " not in key
