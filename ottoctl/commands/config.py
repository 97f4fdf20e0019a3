"""`ottoctl config`: what the daemon is told by its file, and what holds without being said."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import worst
from ottod.errors import ConfigError, OttoError

app = typer.Typer(cls=QuickGroup, help="Show the daemon's configuration", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def config() -> None:
    """Show the daemon's configuration"""


@app.command("show", cls=QuickCommand)
@command
def show(
    console: Console,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Only this section or key, as in ring.sync")] = "",
    changed: Annotated[bool, typer.Option("--changed", help="Only what the file says")] = False,
    json: Annotated[bool, typer.Option("--json", help="The same as -o json")] = False,
) -> int | None:
    """Show every setting of the daemon that holds, and where it comes from: the file's line, or the default

    Read from the file as it is now. A running daemon has what it read when it started, or at the last
    `ottoctl daemon reload`. Values of secrets are not among it, only where they are; a user and a password in a
    URL are not shown.

    Example: `ottoctl config show ring`
    """
    from ottoctl.rendering.config import without_userinfo
    from ottod.settings.origins import Setting, settings_of
    from ottod.settings.paths import Paths

    paths = Paths.from_env(os.environ, uid=os.getuid())
    found = settings_of(paths.config_file, must_exist=paths.config_explicit)
    errors = [each for each in found if isinstance(each, ConfigError)]
    if errors:
        return worst([console.error(error) for error in errors])
    settings = [each for each in found if isinstance(each, Setting) and _is_below(each.key, key)]
    if not settings:
        from ottod.settings.nearest import suggestion

        known = {each.key.partition(".")[0] for each in found if isinstance(each, Setting)}
        raise OttoError(f"no such key: {key}", mend=suggestion(key.partition(".")[0], known), code="usage")
    settings = [each for each in settings if not (changed and each.is_default)]
    settings, is_redacted = without_userinfo(settings)
    if console.output != "text":
        console.records(settings)
    elif json:
        from ottoctl.console import encode_json

        console.write(encode_json(settings, indent=2) + "\n")
    elif settings:
        from ottoctl.rendering.config import settings_table

        console.write(settings_table(settings, width=console.width, color=console.color))
    if console.output == "text" and not paths.config_file.exists():
        console.message(f"there is no {paths.config_file}: all of it is as it is by default")
    elif not settings:
        console.message(f"{paths.config_file} says nothing else than the defaults")
    if is_redacted:
        console.message("what stands before the host in a URL is not shown: [redacted:userinfo]")
    return None


def _is_below(key: str, wanted: str) -> bool:
    """Whether it is that key, or part of it."""
    return not wanted or key == wanted or key.startswith((f"{wanted}.", f"{wanted}["))
