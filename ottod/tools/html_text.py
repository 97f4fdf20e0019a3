"""HTML as text for a model: headings, lists, tables and links as in Markdown, without scripts and pictures."""

from __future__ import annotations


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
        text = converter.handle(html)
    except (ValueError, AssertionError, IndexError, AttributeError):
        # Pages that no parser expects: their words without their order are better than nothing.
        text = _words(html)
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip()


def _words(html: str) -> str:
    import re

    return re.sub(r"<[^<>]{0,2000}>", " ", html)
