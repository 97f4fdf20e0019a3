"""`ottoctl service …`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import OK, UNREACHABLE
from ottod.errors import OttoError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from ottoctl.service import Service

app = typer.Typer(
    cls=QuickGroup, help="Run the daemon as a service of systemd", no_args_is_help=True, rich_markup_mode=None
)

System = Annotated[bool, typer.Option("--system", help="The system's manager in place of your own; needs root")]
Account = Annotated[
    str, typer.Option("--account", metavar="USER", help="With --system: whose daemon it is (the user of sudo)")
]


@app.command("install", cls=QuickCommand)
@command
def install(
    console: Console,
    now: Annotated[
        bool, typer.Option("--now", help="Also start it, and at every login (or boot) from now on")
    ] = False,
    system: System = False,
    account: Account = "",
) -> int | None:
    """Install the daemon of this installation as a service

    Without --now nothing is started: the units are put in their place.

    Example: `ottoctl service install --now`
    """
    from ottoctl.service import MOVED_BY, service_command
    from ottoctl.systemd import lingers

    service = _service(system, account)
    written, removed = service.install(service_command())
    for path in written:
        console.message(f"wrote {path}")
    for path in removed:
        console.message(f"removed {path}, which hid the package's unit")
    if not written and not removed:
        console.message("the units are in their place already")
    for name in MOVED_BY:
        if os.environ.get(name):
            console.message(f"note: the service does not have {name}; ottoctl finds it only where that is not set")
    if now:
        _check_alone(console, service)
        service.enable_now()
        console.message(f"started {service.unit}")
    else:
        console.message(f"start it: `systemctl {'' if system else '--user '}enable --now {service.unit}`")
    if not system and lingers(os.environ, os.getuid()) is False:
        console.message("note: it ends when you log out; `loginctl enable-linger` keeps it, and starts it at boot")
    return None


@app.command("uninstall", cls=QuickCommand)
@command
def uninstall(console: Console, system: System = False) -> int | None:
    """Stop the service and its sessions, disable it, and remove the units that `install` wrote

    Example: `ottoctl service uninstall`
    """
    service = _service(system, "")
    removed = service.uninstall()
    for path in removed:
        console.message(f"removed {path}")
    if not removed:
        console.message("stopped and disabled; there are no units that ottoctl wrote")
    return None


@app.command("status", cls=QuickCommand)
@command
def status(console: Console, system: System = False, account: Account = "") -> int | None:
    """Show whether the service is installed, enabled and active; status 3 if it is not active

    Example: `ottoctl service status -o json`
    """
    found = _service(system, account).status()
    if console.output == "text":
        from ottoctl.rendering.service import service_page

        console.write(service_page(found, color=console.color))
    else:
        console.record(found)
    return OK if found.active in ("active", "reloading") else UNREACHABLE


def _service(system: bool, account: str) -> Service:
    from ottoctl.service import Service

    if account and not system:
        raise OttoError("--account belongs to --system", mend="leave it out, or add --system", code="usage")
    uid = os.geteuid()
    return Service(
        "system" if system else "user", env=os.environ, uid=uid, account=_uid_of(account) if system else ""
    )


def _uid_of(account: str) -> str:
    """The uid, in digits, that the system's instance is for: the one named, or the one behind sudo."""
    import pwd

    if not account:
        return os.environ.get("SUDO_UID") or str(os.getuid())
    try:
        return str((pwd.getpwuid(int(account)) if account.isdigit() else pwd.getpwnam(account)).pw_uid)
    except (KeyError, OverflowError):
        raise OttoError(f"there is no user {account}", mend="give a user's name or uid", code="usage") from None


def _check_alone(console: Console, service: Service) -> None:
    """A daemon that was started by hand holds the place of the service's."""
    from ottoctl.endpoint import check_listening, resolve_endpoint

    if service.scope == "system" or service.status().active == "active":
        return
    try:
        check_listening(resolve_endpoint(console.endpoint))
    except UnreachableError:
        return
    raise RefusedError(
        "a daemon that was started by hand is running",
        mend="`ottoctl daemon stop`, then once more",
        code="already_running",
    )
