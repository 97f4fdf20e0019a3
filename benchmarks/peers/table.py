"""The figures as one Markdown table, each system's beside Otto's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.peers.row import OTTO, Row

EVEN = 0.05
"""Systems this close to each other are even: two runs of the same system differ by more."""

HEAD = (
    "| measure | system | median | all rounds | × Otto | ahead | load | more |\n|---|---|---:|---|---:|---|---:|---|"
)


def markdown(rows: Sequence[Row], titles: Mapping[str, str]) -> str:
    """One line for each measure and system that has it, in the order of `titles`; Otto is one of them.

    The ratio is the system's figure divided by Otto's. Whoever does better is `ahead`; a peer that is, in bold.
    """
    lines = [HEAD]
    for measure in dict.fromkeys(row.measure for row in rows):
        of = {name: [r for r in rows if r.measure == measure and r.system == name] for name in titles}
        lines += [_line(found, titles[name], of.get(OTTO, [])) for name, found in of.items() if found]
    return "\n".join(lines)


def _median(found: Sequence[Row]) -> float | None:
    values = [row.value for row in found if row.value is not None]
    return statistics.median(values) if values else None


def _line(found: Sequence[Row], title: str, of_otto: Sequence[Row]) -> str:
    median = _median(found)
    # The words beside a median are those of the round that is nearest to it.
    row = min(found, key=lambda r: abs((r.value if r.value is not None else float("inf")) - (median or 0.0)))
    values = sorted(r.value for r in found if r.value is not None)
    cells = [
        row.measure,
        title,
        "–" if median is None else f"{_figure(median)} {row.unit}",
        " / ".join(_figure(value) for value in values) if len(found) > 1 else "",
        *_standing(row, median, of_otto),
        f"{max(r.load for r in found):.1f}",
        row.detail,
    ]
    return "| " + " | ".join(cells) + " |"


def _standing(row: Row, value: float | None, of_otto: Sequence[Row]) -> tuple[str, str]:
    """(ratio, who is ahead); nobody is where Otto was not asked."""
    otto = _median(of_otto)
    if row.system == OTTO or value is None or not of_otto:
        return "", ""
    if otto is None:
        return "", "**peer**: Otto could not"
    ratio = value / otto if otto else float("inf")
    if abs(ratio - 1) <= EVEN:
        return f"{ratio:.2f}", "even"
    is_peer = (ratio < 1) == (row.better == "less")
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}", "**peer**" if is_peer else "Otto"


def _figure(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
