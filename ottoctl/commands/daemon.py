"""`ottoctl daemon …`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import OK
from ottod.errors import OttoError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from ottod.protocol.results import DaemonStatus, SessionInfo

MAX_LISTED = 10_000

app = typer.Typer(
    cls=QuickGroup, help="Start, stop and look at the daemon", no_args_is_help=True, rich_markup_mode=None
)


@app.command("start", cls=QuickCommand)
@command
def start(console: Console) -> int | None:
    """Start the daemon in the background; returns when it is ready

    Example: `ottoctl daemon start`
    """
    from ottoctl.daemon import OWN_DAEMON, can_start, differences, start_daemon
    from ottoctl.endpoint import resolve_endpoint

    endpoint = resolve_endpoint(console.endpoint)
    try:
        with console.connect() as otto:
            found = otto.status()
            console.message(f"ottod is already running (pid {found.pid}), and keeps its configuration")
            for line in differences(found.config_file, found.state_dir, os.environ):
                console.message(f"! {line}: {OWN_DAEMON}")
            return OK
    except UnreachableError:
        if not can_start(endpoint):
            raise RefusedError(
                f"a daemon started here would not listen at {endpoint}",
                mend="set OTTO_RUNTIME_DIR instead of --endpoint or OTTO_ENDPOINT",
            ) from None
    is_mine = start_daemon()
    with console.connect() as otto:
        console.message(f"{'started ottod' if is_mine else 'ottod is already running'} (pid {otto.daemon.pid})")
    return None


@app.command("stop", cls=QuickCommand)
@command
def stop(
    console: Console,
    grace: Annotated[
        float, typer.Option("--grace", min=0, max=3600, metavar="SECONDS", help="Time for sessions to end")
    ] = 10.0,
    keep_sessions: Annotated[
        bool, typer.Option("--keep-sessions", help="Leave sessions running for the next daemon to take over")
    ] = False,
) -> int | None:
    """Stop the daemon and its sessions; returns when it is gone, and says which sessions it ended

    With --keep-sessions they go on. Without a daemon they checkpoint and exit after `sessions.orphan_grace_s`.
    A service refuses that, since systemd would end them: `systemctl --user restart ottod` keeps them.

    Example: `ottoctl daemon stop --grace 30`
    """
    from ottoctl.daemon import descriptor_of, wait_gone

    with console.connect() as otto:
        pid = otto.daemon.pid
        sessions = otto.list(limit=MAX_LISTED)
        otto_pidfd = descriptor_of(pid)
        try:
            otto.stop_daemon(grace, keep_sessions=keep_sessions)
            endpoint = otto.connection.endpoint
        except BaseException:
            if otto_pidfd >= 0:
                os.close(otto_pidfd)
            raise
    if not wait_gone(otto_pidfd, endpoint, timeout_s=grace + 30.0):
        raise OttoError(f"ottod (pid {pid}) is still running", mend=f"see its log; as a last resort: kill -9 {pid}")
    console.message(f"stopped ottod (pid {pid}){_fate(sessions, keep_sessions)}")
    return None


def _fate(sessions: Sequence[SessionInfo], keep_sessions: bool) -> str:
    from ottoctl.rendering.stops import named

    if not sessions:
        return ""
    if keep_sessions:
        return f"; left to the next daemon: {named(sessions)}"
    return f"; with it ended: {named(sessions)}"


@app.command("upgrade", cls=QuickCommand)
@command
def upgrade(console: Console) -> int | None:
    """Replace the daemon's code by what is installed now; sessions go on

    Returns when the new program answers, in the same process. Sessions that run finish on the code they began with.

    Example: `ottoctl daemon upgrade`
    """
    from ottod.settings.units import plural

    with console.connect() as otto:
        before = otto.daemon
        after = otto.upgrade_daemon()
        sessions = otto.list(limit=MAX_LISTED)
    if console.output != "text":
        console.record(after)
        return None
    version = f"{before.version} → {after.version}" if before.version != after.version else f"still {after.version}"
    count = f"{plural(len(sessions), 'session')} adopted" if sessions else "no sessions"
    console.message(f"upgraded ottod (pid {after.pid}): {version}; {count}")
    return None


@app.command("reload", cls=QuickCommand)
@command
def reload(console: Console) -> int | None:
    """Let the daemon read its configuration again, and say what changed and what waits for a restart

    A file that is wrong changes nothing.

    Example: `ottoctl daemon reload`
    """
    with console.connect() as otto:
        changes = otto.reload_daemon()
    if console.output != "text":
        console.record(changes)
        return None
    for name in changes.changed:
        console.write(f"changed  {name}\n")
    for name in changes.needs_restart:
        console.write(f"waits    {name}\n")
    if changes.needs_restart:
        console.message("what waits holds after the next start: `ottoctl daemon upgrade`, which keeps sessions")
    elif not changes.changed:
        console.message("nothing has changed")
    return None


@app.command("status", cls=QuickCommand)
@command
def status(
    console: Console,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="The inner counters too")] = False,
) -> int | None:
    """Show what the daemon is and how it fares

    Example: `ottoctl daemon status -o json`
    """
    with console.connect() as otto:
        found = otto.status()
    if console.output == "text":
        console.write(_page(console, found, verbose))
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


def _page(console: Console, status: DaemonStatus, verbose: bool) -> str:
    from ottoctl.rendering.daemon import status_page

    return status_page(status, verbose=verbose, color=console.color)
