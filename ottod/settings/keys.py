"""Provider keys and other secrets: found in a file, in systemd's credentials, or in a variable; never stored."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from ottod.errors import ConfigError, OttoError, ProviderError
from ottod.protocol.specs import McpServer
from ottod.settings.models import needs_key, providers
from ottod.settings.nearest import suggestion
from ottod.settings.sections import DaemonSettings

MAX_KEY_BYTES = 16 * 1024

_PLACE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


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
        f"set {entry.api_key_env}, then `ottoctl daemon stop` if one runs (the next run starts it with the key), or "
        if entry.api_key_env
        else ""
    )
    raise ProviderError(
        f"no API key for provider {provider!r}",
        code="auth",
        mend=f"{how}set providers.{provider}.api_key_file in otto.yml; or use a model of another provider",
    )


def secret(name: str, settings: DaemonSettings, env: Mapping[str, str]) -> str:
    """A secret of the settings, by its name.

    Raises: ConfigError if there is none of that name, or it is not where the settings say.
    """
    entry = settings.secrets.get(name)
    if entry is None:
        raise ConfigError(f"unknown secret {name!r}", mend=suggestion(name, settings.secrets))
    if entry.file:
        return _from_file(Path(os.path.expanduser(entry.file)), is_key=False)
    if entry.credential:
        directory = env.get("CREDENTIALS_DIRECTORY", "")
        if not directory.startswith("/"):
            raise ConfigError(
                f"secret {name!r}: the daemon was given no credentials",
                mend="run it as a unit with LoadCredential, or use file: or env:",
            )
        return _from_file(Path(directory) / entry.credential, private=False, is_key=False)
    value = env.get(entry.env, "")
    if not value:
        raise ConfigError(
            f"secret {name!r}: the daemon's environment has no {entry.env}",
            mend=f"restart the daemon with {entry.env}",
        )
    return value


def secret_variables(settings: DaemonSettings) -> frozenset[str]:
    """The variables of the daemon's environment that hold keys or other secrets."""
    keys = (provider.api_key_env for provider in providers(settings).values())
    return frozenset(filter(None, (*keys, *(entry.env for entry in settings.secrets.values()))))


def known_secrets(settings: DaemonSettings, env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """All keys and secrets that can be found, by provider or name; and why the others of `secrets` cannot."""
    found: dict[str, str] = {}
    for provider in providers(settings):
        try:
            if key := api_key(provider, settings, env):
                found[provider] = key
        except (ConfigError, ProviderError):
            pass  # Whoever needs that key is told.
    missing: dict[str, str] = {}
    for name in settings.secrets:
        try:
            found[name] = secret(name, settings, env)
        except ConfigError as error:
            missing[name] = str(error)
    return found, missing


def preloaded_adapters(settings: DaemonSettings, env: Mapping[str, str]) -> tuple[str, ...]:
    """The adapters whose libraries workers are to find loaded: with `auto`, those that sessions can use now."""
    wanted = settings.pool.preload
    found: set[str] = set()
    for name, provider in providers(settings).items() if wanted != "none" else ():
        if provider.adapter is not None and (wanted == "all" or _is_usable(name, settings, env)):
            found.add(provider.adapter)
    return tuple(sorted(found - {"scripted"}))


def _is_usable(provider: str, settings: DaemonSettings, env: Mapping[str, str]) -> bool:
    try:
        api_key(provider, settings, env)
    except OttoError:
        return False
    return True


def server_secrets(server: McpServer, settings: DaemonSettings, env: Mapping[str, str]) -> dict[str, str]:
    """What `${NAME}` stands for in an MCP server's headers, by name.

    Raises: ConfigError for a name that is nothing the daemon has, and for one that holds a model provider's key.
    """
    found = {}
    for name in _PLACE.findall("\n".join(server.headers.values())):
        value = found[name] = named_value(name, settings, env).strip()
        if not value or not value.isascii() or not value.isprintable():
            raise ConfigError(
                f"MCP server {server.name!r}: the daemon has no secret, credential or variable {name}",
                mend=f"add it to `secrets` in otto.yml, or set {name} and restart the daemon with it",
            )
    return found


def server_headers(server: McpServer, values: Mapping[str, str]) -> dict[str, str]:
    """The headers with each `${NAME}` replaced by its value."""
    return {name: _PLACE.sub(lambda match: values[match[1]], value) for name, value in server.headers.items()}


def named_value(name: str, settings: DaemonSettings, env: Mapping[str, str]) -> str:
    """A secret of the settings, a credential or a variable of the daemon by that name; empty if there is none.

    Raises: ConfigError for a model provider's key, which nobody gets but the provider.
    """
    if name and name in {provider.api_key_env for provider in providers(settings).values()}:
        raise ConfigError(f"{name} holds a model provider's key, which no server gets", mend="use a key of its own")
    if name in settings.secrets:
        return secret(name, settings, env)
    return _from_credentials(env, name) or env.get(name, "")


def _from_credentials(env: Mapping[str, str], variable: str, provider: str = "") -> str:
    directory = env.get("CREDENTIALS_DIRECTORY", "")
    if not directory.startswith("/"):
        return ""
    for name in filter(None, (variable, provider, f"{provider}_api_key" if provider else "")):
        path = Path(directory) / name
        if os.path.isfile(path):
            return _from_file(path, private=False)  # systemd guards this directory itself.
    return ""


def _from_file(path: Path, *, private: bool = True, is_key: bool = True) -> str:
    """What a file holds. A key can stand in a header; another secret may be any text, of several lines too."""
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
    if not key or len(data) > MAX_KEY_BYTES or (is_key and not _is_sendable(key)):
        raise ConfigError(
            "the key file does not hold one key on one line", file=file, mend="write only the key to it"
        )
    return key


def _is_sendable(key: str) -> bool:
    """Whether the key can stand in an HTTP header."""
    return key.isascii() and key.isprintable() and " " not in key
