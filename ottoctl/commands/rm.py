"""`ottoctl rm`."""

from __future__ import annotations

from typing import Annotated

import typer

from ottoctl.commands.arguments import SessionIds
from ottoctl.commands.frame import command
from ottoctl.console import Console
from ottoctl.exits import worst
from ottod.errors import OttoError


@command
def rm(
    console: Console,
    ids: SessionIds,
    force: Annotated[bool, typer.Option("-f", "--force", help="Kill a session that still runs")] = False,
) -> int | None:
    """Forget ended sessions and delete their files

    Example: `ottoctl rm 7f3k`
    """
    statuses = []
    with console.connect() as otto:
        for prefix in ids:
            try:
                session = otto.session(prefix)
                if force and session.info().state != "ended":
                    session.kill(reason="rm --force")
                session.remove()
            except OttoError as error:
                statuses.append(console.error(error))
            else:
                console.write(f"{session.id}\n")
    return worst(statuses)
