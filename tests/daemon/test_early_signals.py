"""Signals that reach root before there is what they concern."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.daemon.harness import RealDaemon, wait_for

PROGRAM = """
import signal, sys
from ottod.__main__ import main
from ottod.storage.database import Database
opened = Database.open
def open_database(*arguments, **options):
    signal.raise_signal(int(sys.argv[1]))
    return opened(*arguments, **options)
Database.open = open_database
sys.exit(main(["run"]))
"""
"""A daemon that gets a signal while its database is opened."""


@pytest.mark.parametrize(("number", "effect"), [(signal.SIGTERM, "stopped"), (signal.SIGHUP, "read again: nothing")])
def test_a_signal_during_boot_is_not_lost(number: signal.Signals, effect: str) -> None:
    """It is acted on as soon as there is what it concerns: a daemon that was told to go does not stay."""
    daemon = RealDaemon()
    try:
        with daemon.log_path.open("ab") as log:
            daemon.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(int(number))],
                env=daemon.env,
                cwd=daemon.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        wait_for("it is acted on", lambda: effect in daemon.log)
        assert "internal error" not in daemon.log
        if number == signal.SIGHUP:
            daemon.process.terminate()
        assert daemon.process.wait(60) == 0
    finally:
        daemon.close()
