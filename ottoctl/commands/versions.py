"""What `ottoctl agent show` and `ottoctl workflow show` ask the daemon: who runs what, and what it was earlier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.console import Console
from ottod.errors import OttoError, RefusedError, UnreachableError

if TYPE_CHECKING:
    from ottod.protocol.definitions import DefinitionKind
    from ottod.protocol.results import DefinitionFound

Running = Annotated[bool, typer.Option("--running", help="Which live sessions run it, and whether as it is now")]
Versions = Annotated[bool, typer.Option("--versions", help="As what sessions on record were started with it")]


def show_running(console: Console, kind: DefinitionKind, name: str, current: str) -> None:
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


def show_versions(console: Console, kind: DefinitionKind, name: str, current: str) -> None:
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


def kept_definition(
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
