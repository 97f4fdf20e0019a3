"""`ottoctl top`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.frame import command, completed, one_of
from ottoctl.console import Console, encode_json
from ottoctl.exits import OK
from ottod.errors import OttoError, UnreachableError

if TYPE_CHECKING:
    from ottoctl.rates import Rates
    from ottoctl.rendering.top import TopRow
    from ottoctl.sync import SyncOtto
    from ottod.protocol.results import DaemonStatus

LIMIT = 10_000
SORTS = ("cpu", "memory", "events", "tokens", "cost", "restarts", "age")
LEAVING_KEYS = ("q", "\x1b", "\x04")


@command
def top(
    console: Console,
    sort: Annotated[
        str,
        typer.Option(
            "-s",
            "--sort",
            metavar="|".join(SORTS),
            help="What decides the order, the greatest first",
            callback=one_of(SORTS),
            autocompletion=completed(SORTS),
        ),
    ] = "cpu",
    interval: Annotated[
        float, typer.Option("-i", "--interval", min=0.1, max=3600, metavar="SECONDS", help="How often to look")
    ] = 2.0,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, metavar="N", help="Print so many tables, and end")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="The same as -n 1")] = False,
) -> int | None:
    """Watch what sessions use and do: memory, CPU, events, tokens, cost

    On a terminal the table is drawn anew until q or Ctrl-C, and c m e t $ r a choose the order. Elsewhere, or with
    -n, it is printed; the first table comes after one interval, because rates need two looks.

    Example: `ottoctl top --once --sort memory -o json`
    """
    from ottoctl.rates import Rates

    tables = 1 if once else count
    if tables is not None and tables > 1 and console.output == "json":
        raise OttoError(
            f"-n {tables}: JSON is one document, for one table",
            mend=f"a line for each session, table after table: `ottoctl top -n {tables} -o jsonl`, or -n 1",
            code="usage",
        )
    if tables is None and console.is_tty and console.output == "text":
        return _live(console, sort, interval)
    rates = Rates()
    with console.connect(follows=True) as otto:
        _look(otto, rates, sort)
        for number in range(tables or 1):
            time.sleep(interval)
            status, rows = _look(otto, rates, sort)
            if number and console.output == "text":
                console.write("\n")
            _print(console, status, rows, sort)
            console.flush()
    return None


def _look(otto: SyncOtto, rates: Rates, sort: str) -> tuple[DaemonStatus, list[TopRow]]:
    from ottoctl.rendering.top import top_rows

    sessions = otto.list(limit=LIMIT)
    return otto.status(), top_rows(sessions, rates.observe(sessions, now_s=time.monotonic()), sort=sort)


def _print(console: Console, status: DaemonStatus, rows: list[TopRow], sort: str) -> None:
    import msgspec

    from ottoctl.rendering.top import top_page

    if console.output == "text":
        page = top_page(
            status, rows, now_ns=time.time_ns(), width=console.width, height=0, color=console.color, sort=sort
        )
        console.write(page)
        return
    records = [
        msgspec.to_builtins(row.info) | {"cpu_percent": row.cpu_percent, "events_per_s": row.events_per_s}
        for row in rows
    ]
    if console.output == "jsonl":
        console.write("".join(encode_json(record) + "\n" for record in records))
    else:
        console.write(encode_json(records, indent=2) + "\n")


def _live(console: Console, sort: str, interval_s: float) -> int:
    from ottoctl.rates import Rates
    from ottoctl.rendering.top import LETTERS, top_page
    from ottoctl.screen import Screen

    rates, page = Rates(), ""
    with console.connect(follows=True) as otto:
        status, rows = _look(otto, rates, sort)
        try:
            with Screen() as screen:
                console.announce = lambda text: screen.draw(f"{text}\n{page}")
                while True:
                    try:
                        (status, rows), trouble = _look(otto, rates, sort), ""
                    except UnreachableError as error:
                        trouble = f"{error.message}; what follows is the last that was known\n"
                    width, height = screen.size
                    page = top_page(
                        status,
                        rows,
                        now_ns=time.time_ns(),
                        width=width,
                        height=height - bool(trouble),
                        color=console.color,
                        sort=sort,
                    )
                    screen.draw(trouble + page)
                    key = screen.wait(interval_s)
                    if key in LEAVING_KEYS:
                        return OK
                    sort = LETTERS.get(key, sort)
        except KeyboardInterrupt:
            return OK
