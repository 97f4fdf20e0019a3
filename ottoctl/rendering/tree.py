"""Sessions as the tree that they are: each below the session that started it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ottoctl.rendering.amounts import age, cost, tokens
from ottoctl.rendering.ansi import printable
from ottoctl.rendering.sessions import called, short_ids, state_text, what_text
from ottoctl.rendering.table import Cell, render_table
from ottod.protocol.results import SessionInfo

HEADER = ("SESSION", "AGENT", "STATE", "AGE", "TOKENS", "COST", "TITLE")


class Node:
    """A session and those below it, the oldest first."""

    __slots__ = ("below", "info")

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self.below: list[Node] = []


def forest(infos: Sequence[SessionInfo]) -> list[Node]:
    """The trees among these sessions, the newest first. A session whose parent is not among them is a top."""
    nodes = {info.session: Node(info) for info in infos}
    tops = []
    for node in sorted(nodes.values(), key=lambda node: node.info.created_at_ns):
        parent = nodes.get(node.info.parent)
        if parent is None or parent is node:
            tops.append(node)
        else:
            parent.below.append(node)
    return tops[::-1]


def walk(tops: Sequence[Node]) -> Iterator[tuple[str, Node]]:
    """Every node after its parent, with the branches that are drawn before it."""
    stack = [("", "", node) for node in reversed(tops)]
    while stack:
        branch, trunk, node = stack.pop()
        yield branch, node
        for place, child in enumerate(reversed(node.below)):
            is_last = place == 0
            stack.append((trunk + ("└─ " if is_last else "├─ "), trunk + ("   " if is_last else "│  "), child))


def tree_table(infos: Sequence[SessionInfo], *, now_ns: int, width: int, color: bool, full_ids: bool = False) -> str:
    """The trees as a table, and a line for those who wait for somebody's permission. `now_ns` is the wall clock."""
    ids = [info.session for info in infos]
    shown = dict(zip(ids, ids, strict=True)) if full_ids else short_ids(ids)
    rows = [_row(branch, node.info, shown, now_ns) for branch, node in walk(forest(infos))]
    table = render_table(HEADER, rows, width=width, color=color, right=frozenset({3, 4, 5}))
    return table + "".join(f"{line}\n" for line in _calls(infos))


def _row(branch: str, info: SessionInfo, shown: dict[str, str], now_ns: int) -> list[str]:
    return [
        Cell(branch + shown[info.session]),
        printable(called(info)),
        state_text(info, now_ns=now_ns),
        age((now_ns - info.created_at_ns) / 1e9) if info.created_at_ns else "-",
        tokens(info.usage.total_tokens),
        cost(info.usage),
        what_text(info),
    ]


def _calls(infos: Sequence[SessionInfo]) -> list[str]:
    """What somebody has to do before these sessions go on."""
    needs = (
        ("waiting_approval", "waits for approval (`ottoctl approvals`)", "wait for approval (`ottoctl approvals`)"),
        ("waiting_input", "waits for input", "wait for input"),
        ("parked", "is parked (`ottoctl session unpark ID`)", "are parked (`ottoctl session unpark ID...`)"),
    )
    lines = []
    for state, one, several in needs:
        found = [info.session for info in infos if info.state == state]
        if found:
            lines.append(f"? {', '.join(found)} {one.replace('ID', found[0]) if len(found) == 1 else several}")
    return lines


def tree_records(infos: Sequence[SessionInfo]) -> list[dict[str, Any]]:
    """The same for programs: each session with its `children`."""
    records: dict[int, dict[str, Any]] = {}
    tops = forest(infos)
    for _, node in walk(tops):
        records[id(node)] = msgspec.to_builtins(node.info) | {"children": []}
    for _, node in walk(tops):
        records[id(node)]["children"] = [records[id(child)] for child in node.below]
    return [records[id(node)] for node in tops]
