"""`ottoctl config`: what the daemon is told by its file, and what holds without being said."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottoctl.exits import status_of_code, worst
from ottoctl.findings import said
from ottod.errors import ConfigError, OttoError

app = typer.Typer(
    cls=QuickGroup, help="Show and check the daemon's configuration", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def config() -> None:
    """Show and check the daemon's configuration"""


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
        raise _unknown_key(key, {each.key for each in found if isinstance(each, Setting)})
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


@app.command("check", cls=QuickCommand)
@command
def check(console: Console) -> int | None:
    """Check the daemon's file; an error names file, line, column and the mend

    So does a warning, which leaves the exit status 0: a rule for an agent that cannot be seen from this directory.
    Read from the file as it is now; a daemon that runs takes it with `ottoctl daemon reload`.

    Example: `ottoctl config check`
    """
    from ottoctl.agents import rules_about_nobody_here
    from ottod.settings import daemon
    from ottod.settings.paths import Paths

    paths = Paths.from_env(os.environ, uid=os.getuid())
    file = paths.config_file
    checked = daemon.check(file, must_exist=paths.config_explicit)
    errors = checked if isinstance(checked, list) else []
    warnings = [] if errors else rules_about_nobody_here()
    if console.output == "text":
        if not errors:
            console.write(f"{file}: ok\n" if file.exists() else f"no {file}: the defaults hold\n")
        for error in errors:
            console.error(error)
        for warning in warnings:
            console.warning(warning)
    else:
        record = {"file": str(file), "ok": not errors, "errors": said(errors), "warnings": said(warnings)}
        console.record(record)
    return worst([status_of_code(error.code) for error in errors])


def _unknown_key(key: str, known: set[str]) -> OttoError:
    """With the key, or the section, that was probably meant."""
    from ottod.settings.nearest import nearest

    sections = {each.rpartition(".")[0] for each in known} - {""}
    section, _, name = key.rpartition(".")
    # By its own words, so that a section that is right does not make all of its keys alike.
    words = {
        word: each
        for each in sorted(known)
        if section in sections and _is_below(each, section)
        for leaf in [each.rpartition(".")[2]]
        for word in (leaf, *leaf.split("_"))
    }
    close = words.get(nearest(name, words), "")
    if not close and section not in sections:
        close = nearest(key, known | sections) or nearest(key.partition(".")[0], sections)
    if close:
        mend = f"did you mean {close!r}? ottoctl config show {close}"
    else:
        mend = f"see what there is: ottoctl config show {section if section in sections else ''}".rstrip()
    return OttoError(f"no such key: {key}", mend=mend, code="usage")


def _is_below(key: str, wanted: str) -> bool:
    """Whether it is that key, or part of it."""
    return not wanted or key == wanted or key.startswith((f"{wanted}.", f"{wanted}["))
