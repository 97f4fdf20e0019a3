"""`ottoctl daemon …`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import OK
from ottod.errors import OttoError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from ottod.protocol.control import DaemonStatus

app = typer.Typer(
    cls=QuickGroup, help="Start, stop and look at the daemon", no_args_is_help=True, rich_markup_mode=None
)


@app.command("start", cls=QuickCommand)
@command
def start(console: Console) -> int | None:
    """Start the daemon in the background; returns when it is ready

    Example: `ottoctl daemon start`
    """
    from ottoctl.daemon import can_start, start_daemon
    from ottoctl.endpoint import resolve_endpoint

    endpoint = resolve_endpoint(console.endpoint)
    try:
        with console.connect() as otto:
            console.message(f"ottod is already running (pid {otto.daemon.pid})")
            return OK
    except UnreachableError:
        if not can_start(endpoint):
            raise RefusedError(
                f"a daemon started here would not listen at {endpoint}",
                mend="set OTTO_RUNTIME_DIR instead of --endpoint or OTTO_ENDPOINT",
            ) from None
    start_daemon()
    with console.connect() as otto:
        console.message(f"started ottod (pid {otto.daemon.pid})")
    return None


@app.command("stop", cls=QuickCommand)
@command
def stop(
    console: Console,
    grace: Annotated[
        float, typer.Option("--grace", min=0, max=3600, metavar="SECONDS", help="Time for sessions to end")
    ] = 10.0,
) -> int | None:
    """Stop the daemon and its sessions; returns when it is gone

    Example: `ottoctl daemon stop --grace 30`
    """
    from ottoctl.daemon import wait_gone

    with console.connect() as otto:
        pid = otto.daemon.pid
        otto_pidfd = _pidfd(pid)
        try:
            otto.stop_daemon(grace)
            endpoint = otto.connection.endpoint
        except BaseException:
            os.close(otto_pidfd)
            raise
    if not wait_gone(otto_pidfd, endpoint, timeout_s=grace + 30.0):
        raise OttoError(f"ottod (pid {pid}) is still running", mend=f"see its log; as a last resort: kill -9 {pid}")
    console.message(f"stopped ottod (pid {pid})")
    return None


@app.command("status", cls=QuickCommand)
@command
def status(console: Console) -> int | None:
    """Show what the daemon is and how it fares

    Example: `ottoctl daemon status -o json`
    """
    with console.connect() as otto:
        found = otto.status()
    if console.output == "text":
        console.write(_page(console, found))
    else:
        console.record(found)
    return None


@app.command("run", cls=QuickCommand)
@command
def run(console: Console) -> int | None:
    """Run the daemon in the foreground, until Ctrl-C

    Example: `ottoctl daemon run`
    """
    from ottoctl.daemon import daemon_command

    console.flush()
    argv = daemon_command("run")
    os.execv(argv[0], argv)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _page(console: Console, status: DaemonStatus) -> str:
    from ottoctl.rendering.daemon import status_page

    return status_page(status, color=console.color)
