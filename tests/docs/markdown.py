"""What the documentation's pages hold: fenced blocks with the marks before them, links, headings.

A mark is an HTML comment in the line before a block, invisible to readers:

    <!-- run -->            the block is executed: shell commands behind `$ `, or a Python program
    <!-- file: PATH -->     the block is written to PATH, where the page's commands find it
    <!-- output -->         the block is what the block before it printed
    <!-- check: KIND -->    the block is a whole file of that kind: agent, settings or script

In outputs `…` stands for anything, a line `…` for any number of lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT),
)

_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
_MARK = re.compile(r"^\s*<!-- ([a-z]+)(?:: (.+?))? -->\s*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block. `line` is where its text begins, counted from 1."""

    page: Path
    line: int
    language: str
    mark: str
    argument: str
    text: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """A line behind `$ ` with its continuations, and what the page says it prints."""

    line: int
    text: str
    expected: list[str]


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    mark, argument = "", ""
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is not None:
            inside = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                inside.append(inner.removeprefix(fence[1]))
            else:
                raise AssertionError(f"{page}:{number}: the block has no end")
            yield Block(page, number + 1, fence[2], mark, argument, "\n".join(inside) + "\n")
            mark, argument = "", ""
        elif line.strip():
            found = _MARK.match(line)
            mark, argument = (found[1], found[2] or "") if found else ("", "")


def commands(block: Block) -> list[Command]:
    """The commands of a console block. A line behind `> ` goes on with the one before."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            found.append(Command(number, line[2:], []))
        elif not found:
            raise AssertionError(f"{block.page}:{number}: output before the first command")
        elif line.startswith("> ") and not found[-1].expected:
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line[2:]}")
        else:
            found[-1].expected.append(line)
    return found


def prose(page: Path) -> str:
    """A page without its blocks and without code in its lines."""
    text = re.sub(r"^\s*```.*?^\s*```\s*$", "", page.read_text(), flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", "``", text)


def links(page: Path) -> list[str]:
    """The targets of a page's links."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """What a link to one of the page's headings can say behind `#`."""
    headings = re.findall(r"^#+ (.+?)\s*$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
