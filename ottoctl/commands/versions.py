"""What `ottoctl agent show` and `ottoctl workflow show` are about: what it is now, who runs it, and what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ottoctl.console import Console
from ottod.errors import ConfigError, OttoError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from ottod.protocol.definitions import DefinitionKind
    from ottod.protocol.results import DefinitionFound
    from ottod.settings.agents import AgentEntry
    from ottod.settings.workflows import WorkflowEntry

E = TypeVar("E", "AgentEntry", "WorkflowEntry")
Running = Annotated[bool, typer.Option("--running", help="Which live sessions run it, and whether as it is now")]
Versions = Annotated[bool, typer.Option("--versions", help="As what sessions on record were started with it")]


def named_entry(
    console: Console,
    kind: DefinitionKind,
    named: str,
    *,
    find: Callable[[str], E],
    as_it_was: Callable[[str, DefinitionFound], E],
    running: bool,
    versions: bool,
    is_file: bool = False,
) -> E | None:
    """What NAME, NAME@DIGEST or a file is, right or wrong; None if its sessions or versions were printed instead.

    `find` gives what a name is now, `as_it_was` what the daemon has kept. Raises OttoError.
    """
    from ottod.protocol.definitions import name_and_digest

    name, digest = (named, "") if is_file else name_and_digest(named)
    entry: E | None = None
    unknown: ConfigError | None = None
    try:
        entry = find(name)
    except ConfigError as error:
        if error.code != f"unknown_{kind}":
            raise
        unknown = error  # Sessions may run what it was.
    spec = entry.spec if entry is not None else None
    current = spec.digest if spec is not None else ""
    if running or versions:
        (_show_running if running else _show_versions)(console, kind, spec.name if spec else name, current)
        return None
    kept = _kept_definition(console, kind, name, digest, current) if digest else None
    if kept is not None:
        return as_it_was(name, kept)
    if entry is None:
        assert unknown is not None
        raise unknown
    return entry


def _show_running(console: Console, kind: DefinitionKind, name: str, current: str) -> None:
    """Prints the live sessions of a name. `current` is the digest of what it is now; empty if it is nothing."""
    from ottoctl.rendering.versions import running_records, running_table

    with console.connect() as otto:
        records = running_records(kind, name, current, otto.list(limit=10_000))
    if console.output != "text":
        console.records(records)
    elif records:
        console.write(running_table(kind, records, width=console.width, color=console.color))
    else:
        console.message(f"no live session runs {name}")


def _show_versions(console: Console, kind: DefinitionKind, name: str, current: str) -> None:
    """Prints the versions of a name that sessions on record refer to."""
    from ottoctl.rendering.versions import version_records, versions_table

    with console.connect() as otto:
        versions = otto.definitions(kind, name)
    if console.output != "text":
        console.records(version_records(versions, current))
    elif versions:
        console.write(versions_table(versions, current, width=console.width, color=console.color))
    else:
        console.message(f"no session on record was started with {name}")


def _kept_definition(
    console: Console, kind: DefinitionKind, name: str, digest: str, current: str
) -> DefinitionFound | None:
    """What NAME@DIGEST says; None if no session refers to it and it is what the file says now. Raises OttoError."""
    try:
        with console.connect() as otto:
            return otto.definition(kind, name, digest)
    except (RefusedError, UnreachableError) as error:
        if _is_missing(error) and current.startswith(digest):
            return None
        raise


def _is_missing(error: OttoError) -> bool:
    return isinstance(error, UnreachableError) or error.code == "no_such_definition"
