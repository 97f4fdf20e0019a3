"""`ottod`: runs the daemon, in the foreground or in the background. Everything else is `ottoctl`'s.

ottod run       in the foreground, until SIGTERM or SIGINT
ottod start     in the background; returns when it is ready, or says why it is not
ottod check     whether this program and its configuration are in order
ottod probe     what isolation this machine offers, as JSON
ottod prove     the same by trying to break each layer; takes some seconds
ottod version   or --version
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ottod import __version__
from ottod.errors import OttoError

READY = b"ready\n"
NEVER_ABSENT = frozenset({"process", "environment"})
"""Layers of isolation without which no session runs, whatever the configuration says."""


def main(argv: list[str] | None = None) -> int:
    """The console script. Exit status 0, 1 for an expected failure, 2 for wrong usage, 75: see `root.departure`."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        arguments = ["version"]
    commands = {"run": _run, "start": _start, "check": _check, "probe": _probe, "prove": _prove, "version": _version}
    if len(arguments) != 1 or arguments[0] not in commands:
        asked_for_help = arguments[:1] in (["--help"], ["-h"], ["help"])
        print((__doc__ or "").strip(), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    try:
        return commands[arguments[0]]()
    except OttoError as error:
        print(f"ottod: error: {error}", file=sys.stderr)
        if error.mend:
            print(f"  mend: {error.mend}", file=sys.stderr)
        return 1


def _version() -> int:
    print(f"ottod {__version__}")
    return 0


def _check() -> int:
    """Imports what root imports and reads what root reads; what is wrong is said by the error."""
    from ottod.root import daemon
    from ottod.root.reload import IN_ORDER
    from ottod.settings.daemon import load
    from ottod.settings.paths import Paths

    assert daemon.Daemon is not None
    paths = Paths.from_env(os.environ, uid=os.getuid())
    load(paths.config_file, must_exist=paths.config_explicit)
    print(f"ottod {__version__}: {IN_ORDER}")
    return 0


def _probe() -> int:
    import json

    from ottod.isolation.probe import probe

    print(json.dumps(probe(), indent=2))
    return 0


def _prove() -> int:
    """A list of layers; `unmet` are those without which the configuration, or Otto itself, starts no session."""
    import json

    import msgspec

    from ottod.isolation.probe import prove
    from ottod.isolation.requirements import missing_layers
    from ottod.protocol.specs import Isolation
    from ottod.settings.daemon import load
    from ottod.settings.paths import Paths

    paths = Paths.from_env(os.environ, uid=os.getuid())
    wanted = msgspec.to_builtins(load(paths.config_file, must_exist=paths.config_explicit).isolation)
    reports = prove()
    told = {report.name: str(report) for report in reports}
    missing = {layer.name for layer in missing_layers(msgspec.convert(wanted, Isolation), platform_report=told)}
    missing |= {report.name for report in reports if report.name in NEVER_ABSENT and report.status == "missing"}
    layers = [
        {
            **msgspec.to_builtins(report),
            "required": report.name in NEVER_ABSENT or wanted.get(report.name) == "required",
            "unmet": report.name in missing,
        }
        for report in reports
    ]
    print(json.dumps(layers, indent=2))
    return 0


def _run(ready_fd: int | None = None) -> int:
    import faulthandler

    from ottod.root.daemon import run_daemon
    from ottod.settings.daemon import load
    from ottod.settings.paths import Paths

    paths = Paths.from_env(os.environ, uid=os.getuid())
    settings = load(paths.config_file, must_exist=paths.config_explicit)
    paths.prepare()
    # A watchdog ends a root that hangs with SIGABRT: its last words are where every thread was.
    faulthandler.enable()

    def ready() -> None:
        if ready_fd is not None:
            try:
                os.write(ready_fd, READY)
            except BrokenPipeError:
                pass  # Whoever waited is gone; the daemon is ready all the same.
            os.close(ready_fd)

    return run_daemon(settings=settings, paths=paths, ready=ready)


def _start() -> int:
    """Forks the daemon away before anything is imported that could mind, and waits for its first word."""
    read_fd, write_fd = os.pipe()
    if os.fork():
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as pipe:
            said = pipe.read()
        if said.endswith(READY):
            return 0
        sys.stderr.write(said.decode("utf-8", "replace") or "ottod: error: the daemon ended before it was ready\n")
        return 1
    os.close(read_fd)
    os.setsid()
    if os.fork():
        os._exit(0)
    os._exit(_background(write_fd))


def _background(write_fd: int) -> int:
    """The daemon's own process: no terminal, output to its log, errors of the start to the waiting parent."""
    os.chdir("/")
    status = 1
    try:
        from ottod.settings.paths import Paths

        paths = Paths.from_env(os.environ, uid=os.getuid())
        paths.prepare()
        _redirect(paths.state_dir / "ottod.log")
        status = _run(write_fd)
    except OttoError as error:
        text = f"ottod: error: {error}\n" + (f"  mend: {error.mend}\n" if error.mend else "")
        sys.stderr.write(text)
        try:
            os.write(write_fd, text.encode())
        except OSError:
            pass  # The parent has heard `ready` and gone; the log has the error.
    except BaseException:  # noqa: BLE001 - the last word of a process without a terminal
        import traceback

        text = traceback.format_exc()
        sys.stderr.write(text)
        try:
            os.write(write_fd, f"ottod: error: {text.splitlines()[-1]}\n".encode())
        except OSError:
            pass
    return status


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        out = null
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)


if __name__ == "__main__":
    sys.exit(main())
