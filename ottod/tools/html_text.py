"""HTML as text for a model: headings, lists, tables and links as in Markdown, without scripts and pictures."""

from __future__ import annotations

import re

_NO_TAG = re.compile(r"<(?![A-Za-z/][^<>]{0,4000}>)")
"""A sign that begins no whole tag, or one that is too long to be meant."""
_LIST = re.compile(r"<[uo]l\b[^<>]*>", re.IGNORECASE)
MAX_LISTS = 1000
"""Beyond them a page's lists are plain text: each that is open costs time for each of its lines."""
_NO_REFERENCE = re.compile(r"&(?!#?[A-Za-z0-9]{1,32};)")


def html_to_text(html: str, *, url: str = "") -> str:
    """The text of a page; `url` is what relative links are relative to. Blocks."""
    # Not at the top: sessions that read no HTML need not load it.
    import html2text

    converter = html2text.HTML2Text(baseurl=url, bodywidth=0)
    converter.ignore_images = True
    converter.single_line_break = False
    converter.protect_links = False
    converter.unicode_snob = True
    try:
        text = converter.handle(without_traps(html))
    except (ValueError, AssertionError, IndexError, AttributeError):
        # Pages that no parser expects: their words without their order are better than nothing.
        text = _words(html)
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip()


def without_traps(html: str) -> str:
    """The page without what makes the parser look through the rest of it again and again, in vain.

    Comments, declarations and instructions say nothing to a reader; what is left of `<` and `&` is itself. What an
    unfinished comment or tag hides, a browser hides too.
    """
    kept, at = [], 0
    while (start := html.find("<!--", at)) >= 0:
        kept.append(html[at:start])
        end = html.find("-->", start + 4)
        if end < 0:
            at = len(html)
            break
        at = end + 3
    kept.append(html[at:])
    html = re.sub(r"<[!?][^<>]*>", "", "".join(kept))
    last = html.rfind("<")
    if last >= 0 and ">" not in html[last:]:
        html = html[:last]
    lists = [found.start() for found in _LIST.finditer(html)]
    if len(lists) > MAX_LISTS:
        html = html[: lists[MAX_LISTS]] + _LIST.sub("", html[lists[MAX_LISTS] :])
    return _NO_REFERENCE.sub("&amp;", _NO_TAG.sub("&lt;", html))


def _words(html: str) -> str:
    return re.sub(r"<[^<>]{0,2000}>", " ", html)
