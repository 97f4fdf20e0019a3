"""What looks like a secret stays here; the rest goes along, up to the protocol's limit."""

from __future__ import annotations

import pytest

from ottoctl.environment import (
    environment_with,
    given_environment,
    looks_secret,
    named_environment,
    shared_environment,
)
from ottod.errors import OttoError
from ottod.protocol.control import Request, client_messages
from ottod.protocol.requests import ENV_WANTED, MAX_ENV_BYTES, StartSession


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANTHROPIC_API_KEY", "x"),
        ("github_token", "x"),
        ("DB_PASSWORD", "x"),
        ("MY_PASS", "x"),
        ("SSH_AUTH_SOCK", "/tmp/agent"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/f"),
        ("DATABASE_URL", "postgres://me:hunter2@db/x"),
        ("HTTP_PROXY", "http://u:p@proxy:3128"),
        ("SENTRY_DSN", "https://x"),
        ("NOTES", "use sk-abcdefghijklmnop1234 for it"),
        ("API_KEYS", "x"),
        ("KEY", "x"),
        ("KEY_2", "x"),
        ("apiKey", "x"),
        ("AWS_ACCESSKEY", "x"),
        ("PGPASSWORD", "x"),
        ("npm_authToken", "x"),
        ("TOKEN1", "x"),
        ("X_OAUTH", "x"),
        ("SESSION_COOKIE", "x"),
        ("PEM", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_secrets_stay(name: str, value: str) -> None:
    """By name or by value."""
    assert looks_secret(name, value)
    assert shared_environment({name: value}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/usr/bin:/bin"),
        ("PWD", "/home/me"),
        ("LANG", "C.UTF-8"),
        ("PYTHONPATH", "/x"),
        ("EDITOR", "vi"),
        ("URL", "https://example.org:8080/a@b"),
        ("COMPASS", "north"),
        ("KEYBOARD", "de"),
        ("MONKEY", "y"),
        ("HOTKEY", "f1"),
        ("GIT_AUTHOR_NAME", "me"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("PRIVATEER", "x"),
    ],
)
def test_the_rest_goes_along(name: str, value: str) -> None:
    """What a session needs to work like the user's shell is not taken for a secret."""
    assert shared_environment({name: value}) == {name: value}


def test_it_fits_the_protocol() -> None:
    """The longest values are left out first, and what is left is what the daemon accepts."""
    env = {f"V{i}": "x" * 40_000 for i in range(20)} | {"PATH": "/bin", "HUGE": "y" * 300_000}
    shared = shared_environment(env)
    assert "PATH" in shared and "HUGE" not in shared
    assert sum(len(n) + len(v) for n, v in shared.items()) <= MAX_ENV_BYTES
    client_messages.encode(Request(id=1, body=StartSession(cwd="/", env=shared)))


def test_an_environment_that_was_put_together_is_never_cut() -> None:
    """A program's own environment is whole or refused; what looks like a secret stays here all the same."""
    assert given_environment({"A": "1", "API_KEY": "x"}) == {"A": "1"}
    with pytest.raises(OttoError) as refused:
        given_environment({"A": "1", "BIG": "é" * MAX_ENV_BYTES})
    assert refused.value.code == "too_large"


def test_bytes_that_are_no_text_stay() -> None:
    """A variable that is not UTF-8 cannot travel, and must not break the rest."""
    assert shared_environment({"ODD": "a\udcff", "LANG": "C"}) == {"LANG": "C"}


def test_variables_that_are_named() -> None:
    """With a value, or with the one that is here; the last one counts."""
    here = {"A": "from here", "B": ""}
    assert named_environment(["A", "B", "C=x=y", "D=", "C=z"], here) == {"A": "from here", "B": "", "C": "z", "D": ""}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("=x", "names no variable"),
        ("1A=x", "names no variable"),
        ("A B=x", "names no variable"),
        ("MISSING", "MISSING is not set here"),
        ("API_TOKEN=x", "API_TOKEN looks like a secret"),
        ("URL=https://me:hunter22@host/", "URL looks like a secret"),
        ("TOKEN", "TOKEN looks like a secret"),
        ("OTTO_HOME=/x", "OTTO_HOME: what begins with OTTO_ is Otto's own"),
        ("A=\x00", "the value of A is not text"),
        ("A=\udcff", "the value of A is not text"),
    ],
)
def test_variables_that_cannot_be_given(given: str, message: str) -> None:
    """Each is refused by its name; no value of a secret is repeated."""
    with pytest.raises(OttoError, match=message) as refused:
        named_environment([given], {"TOKEN": "t0psecret"})
    assert refused.value.code == "usage" and "hunter22" not in str(refused.value) and "t0p" not in str(refused.value)


def test_what_must_pass_is_said_on_the_command_line_only() -> None:
    """A variable of that name which a shell happens to export asks for nothing."""
    here = {ENV_WANTED: "HOME", "LANG": "C"}
    assert shared_environment(here) == {"LANG": "C"}
    said = environment_with(["A=1"], here)
    assert said == given_environment(said) == {"LANG": "C", "A": "1", ENV_WANTED: "A"}
