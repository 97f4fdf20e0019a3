"""HTML as text for a model: headings, lists, tables and links as in Markdown, without scripts and pictures.

Theory of operation. One pass from the left: a tag, or text up to the next one. Nothing is looked at twice, whatever
the page leaves open, and no search for an end begins again where one has found none; so a page costs what its
length costs. No tree is built: what is open is a handful of counters, and an end tag that closes nothing is passed
over. What a browser would hide (scripts, an unfinished comment or tag and all behind it) is hidden; any other sign is
itself.
"""

from __future__ import annotations

import html as entities
import re
from urllib.parse import urljoin

MAX_DEPTH = 12
"""Of lists and quotations in each other; deeper ones are not indented any further."""
MAX_LINKS = 5000
"""Beyond them links are their words alone."""
MAX_URL_CHARS = 1000
MAX_QUOTED_CHARS = 4000
"""Of an attribute's value that may hold a `>`."""

_NAME = re.compile(r"/?([A-Za-z][A-Za-z0-9]{0,20})(?![A-Za-z0-9])")
_SPACE = re.compile(r"[ \t\r\n\f\v]+")
_NO_REFERENCE = re.compile(r"&(?!#?[A-Za-z0-9]{1,32};)")
_HREF = re.compile(r"""(?:^|[\s"'/])href\s{0,20}=\s{0,20}(?:"([^"]*)|'([^']*)|([^\s"'>]+))""", re.IGNORECASE)
_START = re.compile(r"""\sstart\s{0,20}=\s{0,20}["']?([0-9]{1,6})""", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)

HIDDEN = frozenset({"script", "style", "template", "textarea", "title", "iframe", "noembed", "noframes", "xmp"})
"""Their content is no markup, and nothing that is read on the page; it ends with their own end tag."""
PARAGRAPHS = frozenset(
    {
        *("p", "div", "section", "article", "header", "footer", "main", "aside", "nav", "form", "fieldset", "figure"),
        *("figcaption", "details", "summary", "dl", "address", "table", "center", "body", "html", "hgroup", "dialog"),
    }
)
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
EMPHASIS = {"em": "_", "i": "_", "cite": "_", "b": "**", "strong": "**", "code": "`", "kbd": "`", "tt": "`"}


def html_to_text(html: str, *, url: str = "") -> str:
    """The text of a page; `url` is what relative links are relative to. Takes time in proportion to the length."""
    page = _Page(url)
    for tag, attributes, text in _pieces(html):
        if tag:
            page.tag(tag, attributes)
        else:
            page.text(entities.unescape(_NO_REFERENCE.sub("&amp;", text)))
    return page.whole()


def _pieces(html: str) -> list[tuple[str, str, str]]:
    """The page in its order: a tag (`p`, `/p`) with its attributes, or text."""
    found: list[tuple[str, str, str]] = []
    at = said = 0
    while (at := html.find("<", at)) >= 0:
        name = _NAME.match(html, at + 1)
        if name is None and html[at + 1 : at + 2] not in ("!", "?", "/"):
            at += 1  # A sign that begins no tag.
            continue
        found.append(("", "", html[said:at]))
        if html.startswith("<!--", at):
            end = html.find("-->", at + 4)
            said = at = end + 3 if end >= 0 else len(html)
            continue
        end = _tag_end(html, at + 1) if name is not None else html.find(">", at)
        if end < 0:
            return found
        said = at = end + 1
        if name is None:
            continue
        tag = name[0].lower()
        found.append((tag, html[name.end() : end], ""))
        if tag in HIDDEN:
            close = re.compile(rf"</{tag}(?![A-Za-z0-9])[^>]*>", re.IGNORECASE).search(html, at)
            if close is None:
                return found
            said = at = close.end()
    found.append(("", "", html[said:]))
    return found


def _tag_end(html: str, at: int) -> int:
    """Where the tag ends that begins here; -1 if it does not. A `>` between quotes ends none."""
    end = html.find(">", at)
    while end >= 0:
        opening = _quote_before(html, at, end)
        if opening < 0:
            return end
        closing = html.find(html[opening], opening + 1, opening + MAX_QUOTED_CHARS)
        if closing < 0:
            return end  # A quote that nobody closes is a character like any other.
        if closing > end:
            end = html.find(">", closing)
        at = closing + 1
    return -1


def _quote_before(html: str, at: int, end: int) -> int:
    places = [place for place in (html.find('"', at, end), html.find("'", at, end)) if place >= 0]
    return min(places, default=-1)


class _Page:
    """What has been said of a page, and what is open in it."""

    def __init__(self, url: str) -> None:
        self._url = url[:MAX_URL_CHARS]
        self._lines: list[str] = []
        self._line: list[str] = []
        self._blank = True
        """Nothing, or an empty line, stands above."""
        self._space = False
        """A space is due before the next word."""
        self._marker = ""
        """What the next line begins with: a list's sign, a heading's."""
        self._lists: list[int] = []
        """The open lists: 0, or the number of the next item."""
        self._quotes = self._preformatted = 0
        self._links = 0
        self._link: tuple[int, str] | None = None
        self._cells = 0

    # ------------------------------------------------------------ text

    def text(self, text: str) -> None:
        if not text:
            return
        if self._preformatted:
            first, *others = text.replace("\r\n", "\n").split("\n")
            self._say(first)
            for line in others:
                self._end_line(keeps_empty=True)
                self._say(line)
            return
        plain = _SPACE.sub(" ", text)
        if plain.startswith(" "):
            self._space = True
        words = plain.strip(" ")
        if not words:
            return
        self._say(words)
        self._space = plain.endswith(" ")

    def _say(self, words: str) -> None:
        if not words:
            return
        if self._space and self._line and not self._preformatted:
            self._line.append(" ")
        self._space = False
        self._line.append(words)

    def _sign(self, sign: str, *, opens: bool) -> None:
        """A sign of emphasis keeps to its words: a space that is due comes before it, or waits until after it."""
        if opens:
            self._say(sign)
        else:
            self._line.append(sign)

    # ------------------------------------------------------------ lines

    def _end_line(self, *, keeps_empty: bool = False) -> None:
        said = "".join(self._line).rstrip()
        self._line, self._space = [], False
        if not said and (not keeps_empty or (self._blank and not self._marker)):
            return  # A sign that waits for its words goes on waiting.
        indent = "  " * min(len(self._lists), MAX_DEPTH) if not self._marker else ""
        prefix = "> " * min(self._quotes, MAX_DEPTH) + (self._marker or indent)
        self._lines.append((prefix + ("    " if self._preformatted else "") + said).rstrip())
        self._marker = ""
        self._blank = not said

    def _paragraph(self) -> None:
        """Ends what is said, with an empty line below it."""
        self._end_line()
        if not self._blank and not self._lists:
            self._lines.append(("> " * min(self._quotes, MAX_DEPTH)).rstrip())
            self._blank = True

    def whole(self) -> str:
        self._close_link()
        self._end_line()
        return "\n".join(self._lines).strip("\n")

    # ------------------------------------------------------------ tags

    def tag(self, tag: str, attributes: str) -> None:
        """A tag; `/p` is one that ends."""
        name, is_end = tag.lstrip("/"), tag.startswith("/")
        if name in EMPHASIS:
            if not self._preformatted:
                self._sign(EMPHASIS[name], opens=not is_end)
        elif name == "a":
            self._close_link()
            if not is_end and (found := _HREF.search(attributes)):
                self._open_link(found[1] or found[2] or found[3] or "")
        elif name == "br":
            self._end_line(keeps_empty=True)
        elif name in ("td", "th"):
            if not is_end:
                self._cell()
        elif name == "tr":
            self._end_line()
            self._cells = 0
        elif not self._block(name, attributes, is_end=is_end) and name in PARAGRAPHS:
            self._close_link()
            self._paragraph()

    def _block(self, name: str, attributes: str, *, is_end: bool) -> bool:
        """Blocks that look like more than a paragraph. False if it is none of them."""
        if name in HEADINGS:
            self._close_link()
            self._paragraph()
            self._marker = "" if is_end else HEADINGS[name]
        elif name in ("ul", "ol", "menu"):
            self._list(name, attributes, is_end=is_end)
        elif name in ("li", "dt", "dd"):
            self._end_line()
            if not is_end:
                self._marker = self._item(name)
        elif name == "blockquote":
            self._end_line()
            if not is_end:
                self._paragraph()
            elif self._lines and not self._lines[-1].strip("> "):
                self._lines.pop()  # An empty line within the quotation, which ends here.
                self._blank = False
            self._quotes = max(0, self._quotes - 1) if is_end else self._quotes + 1
            if is_end:
                self._paragraph()
        elif name in ("pre", "listing"):
            self._paragraph()
            self._preformatted = max(0, self._preformatted - 1) if is_end else self._preformatted + 1
        elif name == "hr":
            self._paragraph()
            self._say("* * *")
            self._paragraph()
        else:
            return False
        return True

    def _list(self, name: str, attributes: str, *, is_end: bool) -> None:
        self._close_link()
        if is_end and self._lists:
            self._end_line()
            self._lists.pop()
            self._paragraph()
        elif not is_end:
            self._paragraph()
            start = _START.search(attributes)
            self._lists.append((int(start[1]) if start else 1) if name == "ol" else 0)

    def _item(self, name: str) -> str:
        if name == "dt" or (name == "dd" and not self._lists):
            return "" if name == "dt" else "    "
        indent = "  " * min(max(1, len(self._lists)), MAX_DEPTH)
        number = self._lists[-1] if self._lists else 0
        if number:
            self._lists[-1] += 1
        return f"{indent}{number}. " if number else f"{indent}* "

    def _cell(self) -> None:
        self._cells += 1
        if self._cells > 1:
            self._space = False
            self._line.append(" | ")

    # ------------------------------------------------------------ links

    def _open_link(self, href: str) -> None:
        target = _SPACE.sub("", entities.unescape(_NO_REFERENCE.sub("&amp;", href[:MAX_URL_CHARS])))
        self._links += 1
        if not target or self._links > MAX_LINKS or target.startswith("#"):
            return
        try:
            whole = urljoin(self._url, target)
        except ValueError:
            whole = target
        scheme = _SCHEME.match(whole)
        if scheme and scheme[0].lower() not in ("http:", "https:", "mailto:", "ftp:"):
            return
        if self._space and self._line:
            self._line.append(" ")
        self._space = False
        self._link = len(self._line), whole if len(whole) <= MAX_URL_CHARS else target

    def _close_link(self) -> None:
        if self._link is None:
            return
        (at, target), self._link = self._link, None
        words = "".join(self._line[at:])
        if words.strip():
            self._line[at:] = [f"[{words}]({target})"]
