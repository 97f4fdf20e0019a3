"""Root's secrets: taken out of the environment, handed on, learnt, and looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import pytest

from ottod.errors import ConfigError
from ottod.root.vault import VARIABLE, Vault, open_vault, tracing_of
from ottod.settings.daemon import DaemonSettings
from ottod.settings.sections import (
    ProviderSettings,
    RedactionSettings,
    SecretSettings,
    TelemetrySettings,
    TraceSettings,
)
from ottod.telemetry.log import Log

SETTINGS = DaemonSettings(
    providers={"mine": ProviderSettings(adapter="openai", api_key_env="MINE_KEY")},
    secrets={"db": SecretSettings(env="DB_PASSWORD")},
)
KEY, PASSWORD = "key-0123456789", "pass word 0123456789"


def nothing(names: Iterable[str]) -> None:
    """The block of this very process is left alone."""


def opened(environ: dict[str, str], settings: DaemonSettings = SETTINGS) -> Vault:
    vault = Vault(settings, environ, blot_out=nothing)
    vault.open(settings)
    return vault


def test_what_is_secret_is_taken_out() -> None:
    """Keys and secrets leave the environment and are known by name; all else stays."""
    environ = {"MINE_KEY": KEY, "DB_PASSWORD": PASSWORD, "HOME": "/h"}
    vault = opened(environ)
    assert environ == {"HOME": "/h"}
    assert vault.environ == {"MINE_KEY": KEY, "DB_PASSWORD": PASSWORD, "HOME": "/h"}
    assert vault.secrets == {"mine": KEY, "db": PASSWORD}
    assert vault.secret("db") == PASSWORD
    assert vault.redactor.text(f"{KEY} {PASSWORD}") == "[redacted:mine] [redacted:db]"
    with pytest.raises(ConfigError, match="unknown secret 'dB'"):
        vault.secret("dB")


def test_a_successor_gets_what_was_taken() -> None:
    """Through a sealed file in memory; its descriptor is closed, and its variable is gone."""
    environ = {"MINE_KEY": KEY, "DB_PASSWORD": PASSWORD}
    opened(environ).hand_on()
    number = int(environ[VARIABLE])
    assert os.get_inheritable(number)
    with pytest.raises(OSError, match="not permitted"):
        os.write(number, b"x")
    heir = opened(environ)
    assert environ == {} and heir.secrets == {"mine": KEY, "db": PASSWORD}
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


@pytest.mark.parametrize("number", ["", "x", "999999", "-1"])
def test_nonsense_is_no_inheritance(number: str) -> None:
    """A variable that leads nowhere changes nothing."""
    environ = {VARIABLE: number}
    assert opened(environ).secrets == {} and environ == {}


def test_a_replaced_key_is_still_looked_for(tmp_path: Path) -> None:
    """A file's new key counts at once, and its old one is not forgotten."""
    file = tmp_path / "token"
    settings = DaemonSettings(secrets={"token": SecretSettings(file=str(file))})
    file.write_text("first-0123456789\n")
    file.chmod(0o600)
    vault = opened({}, settings)
    file.write_text("second-0123456789\n")
    assert vault.secret("token") == "second-0123456789"
    redacted = vault.redactor.text("first-0123456789 second-0123456789")
    assert "0123456789" not in redacted


def test_what_is_missing_is_said() -> None:
    """A secret that is nowhere is a line in the log, and no reason not to start."""
    out = StringIO()
    open_vault(Vault(SETTINGS, {}, blot_out=nothing), SETTINGS, Log(stream=out))
    assert "secret db" in out.getvalue() and "DB_PASSWORD" in out.getvalue()


def test_a_block_that_cannot_be_written_is_said() -> None:
    """The keys are taken out all the same, and the log says that they can be read."""

    def fails(names: Iterable[str]) -> None:
        raise OSError(1, "Operation not permitted")

    out, environ = StringIO(), {"MINE_KEY": KEY}
    vault = Vault(SETTINGS, environ, blot_out=fails)
    open_vault(vault, SETTINGS, Log(stream=out))
    assert "can be read in /proc" in out.getvalue() and vault.environ["MINE_KEY"] == KEY and environ == {}


def test_shapes_can_be_turned_off() -> None:
    """Known secrets are taken out all the same."""
    settings = DaemonSettings(secrets=SETTINGS.secrets, redaction=RedactionSettings(shapes=False))
    vault = opened({"DB_PASSWORD": PASSWORD}, settings)
    assert vault.redactor.text(f"password=hunter22x {PASSWORD}") == "password=hunter22x [redacted:db]"


def test_traces_need_their_secrets() -> None:
    """Off by default; with a header whose secret is missing there are none, and the log says so."""
    out = StringIO()
    traces = TraceSettings(enabled=True, headers={"x-auth": "db"})
    settings = DaemonSettings(secrets=SETTINGS.secrets, telemetry=TelemetrySettings(traces=traces))
    assert tracing_of(SETTINGS, opened({}), Log(stream=out)) is None and not out.getvalue()
    assert tracing_of(settings, opened({}, settings), Log(stream=out)) is None
    assert "no traces are sent" in out.getvalue()
    told = tracing_of(settings, opened({"DB_PASSWORD": PASSWORD}, settings), Log(stream=out))
    assert told is not None and told.headers == {"x-auth": PASSWORD}


def test_a_real_block_is_blotted_out() -> None:
    """In a process of its own: the values are gone from /proc, whatever stands around them."""
    code = (
        "from ottod.isolation.environment_block import blot_out\n"
        "blot_out(['A_KEY', 'EMPTY', 'NOT_THERE'])\n"
        "print(open('/proc/self/environ', 'rb').read())\n"
    )
    environ = {"A_KEY": KEY, "EMPTY": "", "A_KEY_ID": "stays", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert KEY not in done.stdout and "A_KEY_ID=stays" in done.stdout and "EMPTY=" in done.stdout
