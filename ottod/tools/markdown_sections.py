"""A Markdown file as its headings divide it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ottod.errors import ToolError

PATH_SEPARATOR = " > "


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A heading and what belongs to it: up to the next heading of its level or a higher one.

    Lines count from 0; `body` is the first one below the heading, `end` the first one that is not part of it.
    """

    title: str
    level: int
    path: tuple[str, ...]
    start: int
    body: int
    end: int


def front_matter_end(lines: Sequence[str]) -> int:
    """How many lines the front matter takes, its fences included; 0 if there is none."""
    if not lines or lines[0].rstrip() != "---":
        return 0
    return next((i + 1 for i, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), 0)


def sections(text: str) -> list[Section]:
    """The sections in the order of their headings. What looks like a heading in a code block is none."""
    # Not at the top: sessions that read no Markdown need not load it.
    from markdown_it import MarkdownIt

    lines = text.split("\n")
    skipped = front_matter_end(lines)
    tokens = MarkdownIt("commonmark").parse("\n".join(["" for _ in lines[:skipped]] + lines[skipped:]))
    found: list[tuple[str, int, int, int]] = []
    for i, token in enumerate(tokens):
        # Only those of the document itself: a heading in a quotation or a list divides nothing.
        if token.type == "heading_open" and token.level == 0 and token.map is not None:
            found.append((tokens[i + 1].content.strip(), int(token.tag[1:]), token.map[0], token.map[1]))
    last = len(lines) - (lines[-1] == "")
    out: list[Section] = []
    for i, (title, level, start, body) in enumerate(found):
        end = next((s for _, other, s, _ in found[i + 1 :] if other <= level), last)
        above = [s for s in out if s.end > start and s.level < level]
        path = (*(above[-1].path if above else ()), title)
        out.append(Section(title=title, level=level, path=path, start=start, body=body, end=end))
    return out


def find_section(known: Sequence[Section], heading: str) -> Section:
    """The section of this heading, or of a path such as `Guide > Install`. Raises ToolError with what there is."""
    wanted = [part.strip().lstrip("#").strip().casefold() for part in heading.split(PATH_SEPARATOR.strip())]
    found = [s for s in known if s.title.casefold() == heading.strip().lstrip("#").strip().casefold()]
    found = found or [s for s in known if [p.casefold() for p in s.path[-len(wanted) :]] == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        paths = "; ".join(PATH_SEPARATOR.join(s.path) for s in found[:10])
        raise ToolError(
            f"{len(found)} sections are called {heading[:100]!r}: give a path, one of: {paths}", code="ambiguous"
        )
    titles = "; ".join(s.title for s in known[:40]) or "none"
    raise ToolError(f"there is no section {heading[:100]!r}; there are: {titles[:2000]}", code="not_found")
