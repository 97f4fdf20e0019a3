"""A plain table: aligned columns, two spaces between them, the last one cut to the terminal's width."""

from __future__ import annotations

from collections.abc import Sequence

from ottoctl.rendering.ansi import clip, paint, width_of

GAP = "  "


class Cell(str):
    """A cell's text with a style."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: str, style: str = "") -> Cell:
        cell = super().__new__(cls, text)
        cell.style = style
        return cell


def render_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int,
    color: bool,
    right: frozenset[int] = frozenset(),
) -> str:
    """Lines ending in a newline. `right` holds the indexes of right-aligned columns; width 0 cuts nothing."""
    columns = len(header)
    widths = [max([width_of(header[i]), *(width_of(row[i]) for row in rows)]) for i in range(columns)]
    if width:
        rest = width - sum(widths[:-1]) - len(GAP) * (columns - 1)
        widths[-1] = max(4, min(widths[-1], rest))
    lines = [_line([Cell(text, "bold") for text in header], widths, right, color)]
    lines += [_line(row, widths, right, color) for row in rows]
    return "".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int], right: frozenset[int], color: bool) -> str:
    parts = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        text = clip(cell, width)
        pad = " " * (width - width_of(text))
        shown = paint(text, cell.style if isinstance(cell, Cell) else "", color=color)
        last = i == len(widths) - 1
        parts.append(pad + shown if i in right else shown if last else shown + pad)
    return GAP.join(parts).rstrip() + "\n"
