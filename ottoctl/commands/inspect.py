"""`ottoctl inspect`."""

from __future__ import annotations

from ottoctl.commands.arguments import SessionIds
from ottoctl.commands.frame import command
from ottoctl.console import Console


@command
def inspect(console: Console, ids: SessionIds) -> int | None:
    """Show everything about a session

    Example: `ottoctl inspect 7f3k -o json`
    """
    import time

    from ottoctl.results import info_record

    with console.connect() as otto:
        infos = [otto.session(prefix).info() for prefix in ids]
    if console.output == "text":
        from ottoctl.rendering.sessions import inspect_page

        pages = [inspect_page(info, now_ns=time.time_ns(), color=console.color) for info in infos]
        console.write("\n".join(pages))
    elif len(infos) == 1:
        console.record(info_record(infos[0]))
    else:
        console.records([info_record(info) for info in infos])
    return None
