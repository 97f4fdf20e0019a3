"""What was spent, as text: the table of `ottoctl cost`."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.amounts import partly_known, spent_micros, tokens
from ottoctl.rendering.ansi import one_line
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.results import CostRow
from ottod.protocol.usage import Usage

HEADER = ("CALLS", "INPUT", "CACHED", "OUTPUT", "COST", "PRESUMED")


def cost_table(rows: Sequence[CostRow], *, by: str, width: int, color: bool) -> str:
    """Each key with what it consumed, and the sum of all. Presumed is the part that broke off, and counts in full."""
    total = CostRow(
        key="total",
        usage=sum((row.usage for row in rows), start=Usage()),
        presumed_tokens=sum(row.presumed_tokens for row in rows),
        presumed_usd_micros=sum(row.presumed_usd_micros for row in rows),
        unpriced_calls=sum(row.unpriced_calls for row in rows),
    )
    shown = [_cells(row) for row in (*rows, total)]
    right = frozenset(range(1, 1 + len(HEADER)))
    return render_table((by.upper(), *HEADER), shown, width=width, color=color, right=right)


def _cells(row: CostRow) -> list[str | Cell]:
    usage = row.usage
    presumed = f"{tokens(row.presumed_tokens)} tokens" if row.presumed_tokens else "-"
    return [
        Cell(one_line(row.key) or "-", "bold"),
        str(usage.calls),
        tokens(usage.input_tokens),
        tokens(usage.cache_read_tokens + usage.cache_write_tokens),
        tokens(usage.output_tokens),
        partly_known(spent_micros(usage), is_whole=not row.unpriced_calls),
        presumed,
    ]
