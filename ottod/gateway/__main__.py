"""`python -m ottod.gateway`: root starts it so; by hand it serves what the daemon's settings say."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import uvloop
from setproctitle import setproctitle

from ottod.errors import OttoError
from ottod.gateway.server import ORPHAN_S, Gateway, Options
from ottod.settings.daemon import load
from ottod.settings.paths import Paths
from ottod.settings.sections import DaemonSettings, GatewaySettings
from ottod.telemetry.log import Log, is_journal


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 after an orderly end, 1 for an expected failure, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="ottod.gateway", description="Otto's metrics over HTTP.")
    parser.add_argument("--runtime-dir", type=Path, help="where the daemon's sockets are")
    parser.add_argument("--host", help="the IP address to listen on")
    parser.add_argument("--port", type=int, help="the TCP port; 0 for none")
    parser.add_argument("--socket", action="store_true", default=None, help="also serve on gateway.sock")
    parser.add_argument("--allow-host", action="append", help="a name that this machine may be called by")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--log-format", choices=("text", "json"))
    parser.add_argument("--root-pid", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--orphan-s", type=float, default=ORPHAN_S, help=argparse.SUPPRESS)
    said = parser.parse_args(argv)
    try:
        settings = _settings(said)
        options = _options(said, settings.gateway)
        log = Log(
            level=said.log_level or settings.logging.level,
            form=said.log_format or settings.logging.format,
            journal=is_journal(os.environ),
        )
        setproctitle("ottod: gateway")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(options, log))
    except OttoError as error:
        print(f"ottod gateway: error: {error}" + (f"\n  mend: {error.mend}" if error.mend else ""), file=sys.stderr)
        return 1
    return 0


async def _run(options: Options, log: Log) -> None:
    await Gateway(options, log).run()


def _settings(said: argparse.Namespace) -> DaemonSettings:
    """The daemon's settings; the defaults if root has said all that matters. Raises ConfigError."""
    if said.root_pid:
        return DaemonSettings()
    paths = Paths.from_env(os.environ, uid=os.getuid())
    return load(paths.config_file, must_exist=paths.config_explicit)


def _options(said: argparse.Namespace, gateway: GatewaySettings) -> Options:
    """What stands on the command line, and the settings for the rest. Raises ConfigError."""
    return Options(
        runtime_dir=said.runtime_dir or Paths.from_env(os.environ, uid=os.getuid()).runtime_dir,
        host=gateway.host if said.host is None else said.host,
        port=gateway.port if said.port is None else said.port,
        socket=gateway.socket if said.socket is None else said.socket,
        allowed_hosts=tuple(said.allow_host or gateway.allowed_hosts),
        root_pid=said.root_pid,
        orphan_s=said.orphan_s,
    )


if __name__ == "__main__":
    sys.exit(main())
