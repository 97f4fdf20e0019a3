"""The part of a client's environment that goes along with a new session: everything but what looks like a secret.

The agent's own allowlist, in the daemon, reduces it further; what is left out here never leaves this process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ottod.errors import OttoError
from ottod.protocol.requests import ENV_WANTED, MAX_ENV_BYTES

SECRET_NAME = re.compile(
    r"SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|SESSION_?ID|SSHPASS|XAUTHORITY"  # within any word
    r"|(?:TOKEN|(?:API|ACCESS|AUTH|PRIVATE|SIGNING|ENCRYPTION|MASTER|SSH)KEY)S?(?![A-Z])"  # at the end of a word
    r"|(?<![A-Z])(?:KEYS?|O?AUTH|AUTHORIZATION|PRIVATE|PAT|PWD|PASS|DSN)(?![A-Z])",  # a word, as in API_KEY
    re.IGNORECASE,
)
"""A word ends where no letter follows: KEYBOARD, MONKEY and GIT_AUTHOR_NAME are no keys."""
SECRET_VALUE = re.compile(
    r"://[^/\s:@]{0,256}:[^/\s@]{1,1024}@"  # a password in a URL
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(?:sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,}|xox[abp]-[A-Za-z0-9-]{10,})"
)
"""Each pattern begins with fixed text and has bounds, so that a long value costs no more than reading it."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_PREFIX = "OTTO_"
INNOCENT = frozenset({"PWD", "OLDPWD"})


def shared_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What may be sent, at most MAX_ENV_BYTES of it: when it is too much, the longest values are left out.

    A variable that is called as Otto's own word for what must pass is nobody's wish, and stays.
    """
    return _within_bounds({name: value for name, value in env.items() if name != ENV_WANTED})


def _within_bounds(env: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in env.items() if not looks_secret(name, value) and _is_text(name + value)}
    total = sum(_size(name, value) for name, value in kept.items())
    for name in sorted(kept, key=lambda name: len(kept[name]), reverse=True):
        if total <= MAX_ENV_BYTES:
            break
        total -= _size(name, kept.pop(name))
    return kept


def given_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The same of an environment that a program put together for the session: it is never cut in silence.

    Raises OttoError when it is too large.
    """
    shared = _within_bounds(env)
    missing = {name for name in env if name not in shared and not looks_secret(name, env[name])}
    if any(_is_text(name + env[name]) for name in missing):
        total = sum(_size(name, value) for name, value in env.items() if _is_text(name + value))
        raise OttoError(
            f"the environment has {total} bytes; at most {MAX_ENV_BYTES} are possible",
            mend="leave out what the session does not need, or put long values into files",
            code="too_large",
        )
    return shared


def named_environment(given: Iterable[str], env: Mapping[str, str]) -> dict[str, str]:
    """The variables of `--env NAME[=VALUE]`; without a value it is the one that is here.

    Raises OttoError: for what is no variable, is not set here, or looks like a secret, which no tool's program gets.
    """
    found: dict[str, str] = {}
    for each in given:
        name, is_said, value = each.partition("=")
        if not NAME.fullmatch(name):
            raise OttoError(
                f"--env {name!r} names no variable", mend="write --env NAME=VALUE, or --env NAME", code="usage"
            )
        if name.startswith(OWN_PREFIX):
            raise OttoError(
                f"{name}: what begins with {OWN_PREFIX} is Otto's own, and no session gets it from here",
                mend="give it another name",
                code="usage",
            )
        if not is_said and name not in env:
            raise OttoError(f"{name} is not set here", mend=f"write --env {name}=VALUE, or set it", code="usage")
        value = value if is_said else env[name]
        if looks_secret(name, value):
            raise OttoError(
                f"{name} looks like a secret, and programs of tools are given none",
                mend="give another name to what is none; servers of tools have secrets of their own (`mcp_servers`)",
                code="usage",
            )
        if not _is_text(value) or "\0" in value:
            raise OttoError(f"the value of {name} is not text", mend="put it into a file", code="usage")
        found[name] = value
    return found


def environment_with(given: Iterable[str], env: Mapping[str, str]) -> dict[str, str]:
    """What may be sent, with the variables of `--env` over it, and word that the session must get these."""
    named = named_environment(given, env)
    return {**shared_environment(env), **named, ENV_WANTED: " ".join(named)}


def looks_secret(name: str, value: str) -> bool:
    """Errs on the side of secrecy: an agent that needs such a variable gets it from the daemon's configuration."""
    if name in INNOCENT:
        return False
    return SECRET_NAME.search(name) is not None or SECRET_VALUE.search(value) is not None


def _size(name: str, value: str) -> int:
    return len(name.encode()) + len(value.encode()) + 10  # msgpack headers of both strings


def _is_text(value: str) -> bool:
    """Bytes that were not UTF-8 arrive in os.environ as lone surrogates, which no message can carry."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
