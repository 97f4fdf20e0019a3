"""The command line: `ottoctl`, all its commands and how it ends.

Only the module of the command that was asked for is imported; help and completion import them all.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from ottoctl.commands.frame import OPTIONS, Color, Endpoint, Output, Timeout, execute
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import INTERRUPTED, OK
from ottoctl.misuse import CommandLineError, say_misuse

COMMANDS: tuple[tuple[str, str], ...] = (
    # name, module
    ("run", "run"),
    ("ps", "ps"),
    ("tree", "tree"),
    ("top", "top"),
    ("inspect", "inspect"),
    ("logs", "logs"),
    ("events", "events"),
    ("attach", "attach"),
    ("send", "send"),
    ("interrupt", "steer"),
    ("pause", "steer"),
    ("unpause", "steer"),
    ("resume", "lineage"),
    ("fork", "lineage"),
    ("rollback", "lineage"),
    ("export", "export"),
    ("wait", "wait"),
    ("approvals", "approvals"),
    ("approve", "approvals"),
    ("deny", "approvals"),
    ("policy", "policy"),
    ("cost", "cost"),
    ("providers", "providers"),
    ("stop", "stop"),
    ("kill", "stop"),
    ("rm", "rm"),
    ("session", "session"),
    ("artifact", "artifact"),
    ("decisions", "decisions"),
    ("research", "research"),
    ("notes", "notes"),
    ("agent", "agent"),
    ("workflow", "workflow_run"),
    ("route", "route"),
    ("daemon", "daemon"),
    ("config", "config"),
    ("service", "service"),
    ("doctor", "doctor"),
    ("demo", "demo"),
    ("version", "version"),
    ("completion", "completion"),
)
"""Every command in the order of the help. A group's module holds an `app`, any other the command's function."""

HELP = """Runs AI agents as supervised sessions, and watches over them.

Example: `ottoctl run coder "make the failing test pass"`
"""


def build_app(only: str = "", *, completing: bool = False) -> typer.Typer:
    """The application, with all commands or with one; `completing` when a shell is asking."""
    app = typer.Typer(
        name="ottoctl",
        cls=QuickGroup,
        help=HELP,
        no_args_is_help=True,
        add_completion=completing,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(remember_globals)
    for name, module_name in COMMANDS:
        if only and name != only:
            continue
        module = import_module(f"ottoctl.commands.{module_name}")
        group = getattr(module, "app", None)
        if group is not None:
            app.add_typer(group, name=name)
        else:
            app.command(name, cls=QuickCommand)(getattr(module, name))
    return app


def show_version(wanted: bool) -> None:
    """Of the client alone: whoever asks so wants a line at once, with a daemon or without."""
    if wanted:
        raise typer.Exit(execute(write_version, Console(), {}))


def write_version(console: Console) -> None:
    """`ottoctl 1.2.3`."""
    import ottod

    console.write(f"ottoctl {ottod.__version__}\n")


Version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit", is_eager=True, callback=show_version)
]


def remember_globals(
    ctx: typer.Context,
    version: Version = False,
    endpoint: Endpoint = None,
    timeout: Timeout = None,
    output: Output = None,
    color: Color = None,
) -> None:
    values: dict[str, Any] = {"endpoint": endpoint, "timeout": timeout, "output": output, "color": color}
    ctx.obj = {name: values[name] for name, _ in OPTIONS if values[name] is not None}


def asked_command(arguments: list[str]) -> str:
    """The command's name if it is plain to see, else nothing: then all commands are needed."""
    takes_value = {"--endpoint", "--timeout", "-o", "--output", "--color"}
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in takes_value:
            skip = True
        elif not argument.startswith("-"):
            return argument if any(name == argument for name, _ in COMMANDS) else ""
    return ""


def run() -> None:
    """Carries out the command line. Never returns."""
    is_completing = "_OTTOCTL_COMPLETE" in os.environ
    app = build_app("" if is_completing else asked_command(sys.argv[1:]), completing=is_completing)
    try:
        status = app(prog_name="ottoctl", standalone_mode=False)
    except CommandLineError as error:
        status = say_misuse(error, sys.argv[1:])
    except typer.Abort:
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else OK)
