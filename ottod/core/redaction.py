"""Secrets are taken out of everything that is kept or shown: `[redacted:NAME]` stands where one stood.

Theory of operation. What is looked for are the secrets that the daemon knows, as they are and in the forms that
programs give them (base64 at any offset, percent-encoded, JSON-escaped, hexadecimal), and the shapes of secrets that
it does not know (`secret_shapes`). They begin with fixed characters, their *head*, or stand behind a name; one
expression finds where that may be, and whatever has no such place is passed on at the price of one look. There, an
expression of the shape says whether the whole has come, and another one whether it still could.

A stream is redacted as it flows. What is not decided is held back, a few characters mostly and bounded always, and
whoever ends the stream asks for the rest. However a text is cut into pieces, the same comes out. A secret whose end
is open (a key goes on for as long as its alphabet does) is marked as soon as it is one, and what follows of it is
swallowed.

Redacting what has been redacted changes nothing: every surface may do it again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import msgspec
from msgspec.structs import replace

from ottod.core.secret_shapes import (
    BEHIND_CHARS,
    HEAD_CHARS,
    MAX_KEY_BODY_CHARS,
    SEPARATORS,
    SHAPES,
    Shape,
    is_behind,
)
from ottod.protocol.model import Thinking

MIN_SECRET_CHARS = 8
"""Shorter secrets are not looked for: they would be found everywhere."""
MIN_LINE_CHARS = 16
"""Of a secret of several lines, each line of at least so many is one by itself."""
MAX_SECRET_CHARS = 16 * 1024
CONTEXT_CHARS = BEHIND_CHARS
"""What has been said already and is kept, to know what a secret stands behind."""
MIN_LINE_BREAK_CHARS = 60
PIECE_CHARS = 24
"""Of an encoding of a key that may be broken into lines."""
MAX_KEY_CHARS = 512
"""A longer secret is a document, of which there would be too many pieces."""
QUOTED_BY = ("", "/", "!'()*")
"""What those who percent-encode leave as it is: a strict one, those who think of paths, and browsers."""
_ESCAPED = re.compile("%[0-9A-F]{2}")
MAX_ENDING_CHARS = 64
"""Of the line that ends a private key."""
COMMON = "etaoinsrhldcumwfgpybvk"
"""Letters, from the most frequent on."""
KEPT_CHARS = CONTEXT_CHARS + HEAD_CHARS - 1
KEY_LINE = "PRIVATE KEY-----"
KEY_BEGINS = re.compile(f"-----BEGIN [A-Z0-9 ]{{0,24}}{KEY_LINE}")
KEY_ENDS = re.compile(f"-----END [A-Z0-9 ]{{0,24}}{KEY_LINE}")
KEY_MARK = "[redacted:private-key]"
MARK = re.compile(r"\[redacted:[^\]\s]{1,100}\]")
ESCAPES = ("\\n", "\\t", "\\r")

T = TypeVar("T")


class Known(msgspec.Struct, frozen=True):
    """One form of a known secret."""

    mark: str
    text: str


class Form(msgspec.Struct, frozen=True):
    """A shape, ready to be looked for."""

    mark: str
    shape: Shape
    whole: re.Pattern[str]
    unfinished: re.Pattern[str]
    lead: re.Pattern[str]
    tail: re.Pattern[str] | None
    ending: re.Pattern[str] | None


class Redactor:
    """Takes secrets out of texts. `secrets` maps names to values. Frozen once made; hold one for a process."""

    def __init__(self, secrets: Mapping[str, str] | None = None, *, shapes: Iterable[Shape] = SHAPES) -> None:
        self._secrets = dict(secrets or {})
        self._shapes = tuple(shapes)
        known = sorted(_forms_of(self._secrets), key=lambda known: -len(known.text))
        forms = [_compiled(shape) for shape in self._shapes]
        self.known_by_head: dict[str, list[Known]] = {}
        self.forms_by_head: dict[str, list[Form]] = {}
        for each in known:
            self.known_by_head.setdefault(each.text[:HEAD_CHARS], []).append(each)
        for form in forms:
            for head in form.shape.heads():
                self.forms_by_head.setdefault(head, []).append(form)
        self.longest_known = len(known[0].text) if known else 0
        self.assignments = [form for form in forms if form.shape.behind]
        self.names = tuple(name for form in self.assignments for name in form.shape.behind)
        heads = {*self.known_by_head, *self.forms_by_head}
        anchors = {head[_rarest(head) :] for head in heads}
        self.heads = re.compile(_anchors_expression(anchors, self.names))
        # What a text may end with that could become a head: anywhere, or where a word begins.
        anywhere = {head[:n] for head in self.known_by_head for n in (1, 2)}
        word = {h[:n] for h, fs in self.forms_by_head.items() for n in (1, 2) if any(_is_held(f, True) for f in fs)}
        loose = {h[:n] for h, fs in self.forms_by_head.items() for n in (1, 2) if any(_is_held(f, False) for f in fs)}
        self.beginnings = frozenset(anywhere | loose)
        self.word_beginnings = frozenset(word)
        self.all_beginnings = self.beginnings | self.word_beginnings
        self._for_arguments: Redactor | None = None

    @classmethod
    def of(cls, secrets: Mapping[str, str], *, has_shapes: bool = True) -> Redactor:
        """One for these secrets, and for whatever looks like one if that is wanted."""
        if not secrets:
            return shapes_only(has_shapes=has_shapes)
        return cls(secrets, shapes=SHAPES if has_shapes else ())

    @property
    def has_shapes(self) -> bool:
        """Whether it hides what only looks like a secret, too."""
        return bool(self._shapes)

    def text(self, text: str) -> str:
        """The text without secrets; the same object if there are none."""
        if self.heads.search(text) is None:
            return text
        stream = RedactedStream(self)
        redacted = stream.feed(text) + stream.rest()
        return text if redacted == text else redacted

    def beginning(self, text: str) -> str:
        """A text that goes on where nobody looks any more: without an end that a secret may begin with."""
        return self.stream().feed(text)

    def ending(self, text: str, *, before: str) -> str:
        """The end of a longer text, of which `before` comes right before it: without the end of a secret of that."""
        stream = self.stream()
        stream.feed(before)
        held = stream.held_chars
        said = stream.feed(text) + stream.rest()
        return said[held:] if held and said.startswith(before[len(before) - held :]) else said

    def keys_hidden(self, text: str) -> str:
        """The text, in which each line of a private key is marked by itself: it has as many lines as before."""
        if not self._shapes or KEY_LINE not in text:
            return text
        out: list[str] = []
        at = 0
        for begin in KEY_BEGINS.finditer(text):
            if begin.start() < at:
                continue
            end = KEY_ENDS.search(text, begin.end(), begin.end() + MAX_KEY_BODY_CHARS)
            until = end.end() if end is not None else min(len(text), begin.end() + MAX_KEY_BODY_CHARS)
            lines = text.count("\n", begin.start(), until)
            out += (text[at : begin.start()], "\n".join([KEY_MARK] * (lines + 1)))
            at = until
        return "".join([*out, text[at:]])

    def arguments(self, text: str) -> str:
        """The same for a tool call's arguments, which may be program text: no passwords that stand behind a name."""
        if self.heads.search(text) is None:
            return text
        if self._for_arguments is None:
            shapes = (shape for shape in self._shapes if not shape.behind)
            self._for_arguments = Redactor(self._secrets, shapes=shapes)
        return self._for_arguments.text(text)

    def data(self, data: bytes) -> bytes:
        """The same for a file's content, if it is UTF-8; what is not is left as it is."""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return data
        redacted = self.arguments(text)
        return data if redacted is text else redacted.encode()

    def stream(self) -> RedactedStream:
        """For a text that comes in pieces."""
        return RedactedStream(self)

    def contains_known(self, text: str) -> bool:
        """Whether a known secret, in any form, is in the text."""
        return any(known.text in text for group in self.known_by_head.values() for known in group)

    def value(self, value: T) -> T:
        """A string, or a struct, tuple, list or dictionary with strings in it; the same object if there are none."""
        redacted: Any = self._value(value)
        return redacted  # type: ignore[no-any-return]

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, msgspec.Struct):
            return self._struct(value)
        if isinstance(value, dict):
            changed = {self.text(k) if isinstance(k, str) else k: self._value(v) for k, v in value.items()}
            return value if changed == value else changed
        if isinstance(value, tuple | list):
            items = [self._value(item) for item in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return tuple(items) if isinstance(value, tuple) else items
        return value

    def _struct(self, value: msgspec.Struct) -> msgspec.Struct:
        if isinstance(value, Thinking):
            return self._thinking(value)
        changes = {}
        for name in value.__struct_fields__:
            old = getattr(value, name)
            if old is None or isinstance(old, int | float | bytes):
                continue
            new = self.arguments(old) if name == "arguments" and isinstance(old, str) else self._value(old)
            if new is not old:
                changes[name] = new
        return replace(value, **changes) if changes else value

    def _thinking(self, block: Thinking) -> Thinking:
        """Thoughts that were changed are no longer what their provider signed: they are not given back to it."""
        text = self.text(block.text)
        return block if text is block.text else Thinking(text=text)


@lru_cache(maxsize=2)
def shapes_only(*, has_shapes: bool = True) -> Redactor:
    """For whoever knows no secret. Made once, before the forks: most sessions need no other."""
    return Redactor(shapes=SHAPES if has_shapes else ())


class Opening(msgspec.Struct, frozen=True):
    """A place in a text where secrets may begin, and which."""

    at: int
    known: Sequence[Known]
    forms: Sequence[Form]

    def held_from(self, text: str) -> int | None:
        """Where the part begins that must wait, if it is undecided what begins here."""
        rest = text[self.at :] if self.known else ""
        if any(len(known.text) > len(rest) and known.text.startswith(rest) for known in self.known):
            return self.at
        held: int | None = None
        for form in self.forms:
            if form.unfinished.match(text, self.at) is not None:
                lead = form.lead.match(text, self.at)
                begins = lead.end() if lead is not None else len(text)
                held = begins if held is None else min(held, begins)
        return held

    def found(self, text: str) -> tuple[int, int, str, Form | None] | None:
        """What begins here: start and end of the hidden part, its mark, and the form if more of it may follow."""
        for known in self.known:
            if text.startswith(known.text, self.at):
                return self.at, self.at + len(known.text), known.mark, None
        for form in self.forms:
            whole = form.whole.match(text, self.at)
            if whole is not None:
                is_open = form.tail is not None or form.ending is not None
                return whole.start(1), whole.end(1), form.mark, form if is_open else None
        return None


class RedactedStream:
    """One text that comes in pieces. What `feed` and `rest` give, in this order, is the redacted text."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._kept = ""
        """The end of what came: first what has been said and gives the context, then what is held back."""
        self._said = 0
        self._scanned = 0
        """Before this in what is kept there is no undecided head."""
        self._floor = 0
        """Before this in what is kept everything is hidden already."""
        self._swallowing: Form | None = None
        self._budget_chars = 0

    @property
    def held_chars(self) -> int:
        """How much came and has not been said."""
        return len(self._kept) - self._said

    def feed(self, piece: str) -> str:
        """What can be said now."""
        if self._swallowing is not None:
            piece = self._swallow(piece)
            if not piece:
                return ""
        text = self._kept + piece
        redactor = self._redactor
        if redactor.heads.search(text, self._scanned) is None:
            # As `_scan` would have it, without its price: this is what nearly every piece comes to.
            begins, size = redactor.all_beginnings, len(text)
            held = self._may_begin(text) if text[-1:] in begins or text[-2:] in begins else 0
            cut = max(self._said, size - held)
            said = text[self._said : cut]
            start = size - KEPT_CHARS if size > KEPT_CHARS else 0
            self._kept = text[start:]
            self._said = cut - start
            self._floor = max(0, self._floor - start) if self._floor else 0
            self._scanned = max(size - 2 - start, self._floor, 0)
            return said
        return self._scan(text, is_last=False)

    def rest(self) -> str:
        """The end of the text: what was held back. The stream begins anew after it."""
        text = "" if self._swallowing is not None else self._scan(self._kept, is_last=True)
        self._kept, self._said, self._scanned, self._floor, self._swallowing = "", 0, 0, 0, None
        return text

    # ------------------------------------------------------------ looking

    def _may_begin(self, text: str) -> int:
        """How many characters at the end could be the beginning of a head: 0, 1 or 2."""
        redactor = self._redactor
        for count in (2, 1):
            end, at = text[-count:], len(text) - count
            if at >= 0 and (
                end in redactor.beginnings or (end in redactor.word_beginnings and self._begins_word(text, at))
            ):
                return count
        return 0

    def _scan(self, text: str, *, is_last: bool) -> str:
        """Looks at every place where a secret may begin, from the left. An undecided one ends what can be said."""
        out: list[str] = []
        said, scan = self._said, self._scanned
        search = self._redactor.heads.search
        while (anchor := search(text, scan)) is not None:
            scan = anchor.start() + 1
            for opening in self._openings(text, anchor.start()):
                if not is_last and (held := opening.held_from(text)) is not None:
                    cut = max(said, self._least_held(text, scan, held))
                    out.append(text[said:cut])
                    self._keep(text, min(opening.at, anchor.start()), cut)
                    return "".join(out)
                if (found := opening.found(text)) is not None:
                    start, end, mark, form = found
                    out += (text[said : max(said, start)], mark)
                    if form is not None:
                        self._budget_chars = MAX_KEY_BODY_CHARS
                        goes_on = self._swallow_form(form, text, end)
                        if goes_on is None:
                            return "".join(out)
                        end = goes_on
                    said = scan = self._floor = end
                    break
        cut = max(said, len(text) - (0 if is_last else self._may_begin(text)))
        out.append(text[said:cut])
        self._keep(text, len(text), cut)
        return "".join(out)

    def _keep(self, text: str, undecided: int, said: int) -> None:
        """Remembers what is needed of `text`: all from where it is undecided, and a little before it."""
        scanned = max(min(undecided, max(0, len(text) - 2)), self._floor)
        start = max(0, min(scanned, said) - CONTEXT_CHARS)
        self._kept = text[start:]
        self._said = said - start
        self._scanned = scanned - start
        self._floor = max(0, self._floor - start)

    def _begins_word(self, text: str, at: int) -> bool:
        """Whether a word begins here. What is hidden already is no part of one."""
        return at == self._floor or _begins_word(text, at)

    def _openings(self, text: str, anchor: int) -> list[Opening]:
        """What may begin at an anchor, or a character before it."""
        redactor = self._redactor
        openings = []
        for at in (anchor - 1, anchor):
            head = text[at : at + HEAD_CHARS] if at >= self._floor else ""
            known = redactor.known_by_head.get(head, ())
            forms = redactor.forms_by_head.get(head, ())
            if known or forms:
                is_word = self._begins_word(text, at)
                openings.append(Opening(at, known, [f for f in forms if is_word or not f.shape.is_word]))
        if text[anchor] in SEPARATORS and is_behind(text, anchor, redactor.names, since=self._floor):
            behind = [(form, form.shape.behind) for form in redactor.assignments]
            forms = [form for form, names in behind if is_behind(text, anchor, names, since=self._floor)]
            openings.append(Opening(anchor, (), forms))
        return openings

    def _least_held(self, text: str, scan: int, held: int) -> int:
        """What waits behind an undecided place may have to wait from an earlier one than it says itself."""
        search = self._redactor.heads.search
        while scan < held and (anchor := search(text, scan)) is not None:
            scan = anchor.start() + 1
            for opening in self._openings(text, anchor.start()):
                other = opening.held_from(text)
                if other is None and (found := opening.found(text)) is not None:
                    other = found[0]
                if other is not None:
                    held = min(held, other)
        return min(held, len(text) - self._may_begin(text))

    # ------------------------------------------------------------ swallowing

    def _swallow(self, piece: str) -> str:
        """What is left of a piece behind the secret that goes on in it."""
        form, kept = self._swallowing, self._kept
        assert form is not None
        self._swallowing = None
        text = kept + piece
        goes_on = self._swallow_form(form, text, len(kept) if form.tail is not None else 0)
        if goes_on is None:
            return ""
        self._floor = goes_on
        self._keep(text[:goes_on], goes_on, goes_on)
        return text[goes_on:]

    def _swallow_form(self, form: Form, text: str, start: int) -> int | None:
        """Where a secret ends that was recognised; None if it goes on beyond this text."""
        kept_chars = 1
        if form.tail is not None:
            tail = form.tail.match(text, start)
            assert tail is not None
            if tail.end() < len(text):
                return tail.end()
        else:
            assert form.ending is not None
            ending = form.ending.search(text, start)
            if ending is not None and ending.start() - start <= self._budget_chars:
                return ending.end()
            if len(text) - start >= self._budget_chars + MAX_ENDING_CHARS:
                return start + self._budget_chars
            # The line that ends it may be cut in two: its beginning is kept, and looked at again.
            kept_chars = min(len(text) - start, MAX_ENDING_CHARS)
            self._budget_chars -= len(text) - start - kept_chars
        self._kept = text[len(text) - kept_chars :]
        self._said = self._scanned = self._floor = kept_chars
        self._swallowing = form
        return None


def _begins_word(text: str, at: int) -> bool:
    """Whether a word begins here; behind an escape of JSON one does, though a letter stands before it."""
    if at == 0 or not (text[at - 1].isalnum() or text[at - 1] == "_"):
        return True
    return text[at - 2 : at] in ESCAPES and at >= 2


def _is_held(form: Form, is_word: bool) -> bool:
    """Whether the beginning of its head is itself hidden, and so must wait."""
    return form.shape.is_word == is_word and form.shape.shown == 0


@lru_cache(maxsize=128)
def _compiled(shape: Shape) -> Form:
    return Form(
        mark=f"[redacted:{shape.name}]{shape.after}",
        shape=shape,
        whole=re.compile(shape.whole()),
        unfinished=re.compile(shape.unfinished()),
        lead=re.compile(shape.lead()),
        tail=re.compile(f"{shape.tail}*") if shape.tail else None,
        ending=re.compile(shape.ending) if shape.ending else None,
    )


def _rarest(head: str) -> int:
    """Which of the first two characters is looked for: letters that every text is full of are passed over."""
    first, second = (COMMON.find(c) for c in head[:2])
    return 1 if first >= 0 and (second < 0 or second > first) else 0


def _anchors_expression(anchors: Iterable[str], names: Sequence[str]) -> str:
    """One branch for each first character: the matcher skips what begins with none of them."""
    by_first: dict[str, list[str]] = {}
    for anchor in sorted(anchors):
        by_first.setdefault(anchor[0], []).append(re.escape(anchor[1:]))
    if names:
        ends = sorted({"".join(f"[{c}{c.upper()}]" for c in name[-3:]) for name in names})
        for separator in SEPARATORS:
            behind = "|".join(f"{end}{separator}" for end in ends)
            by_first.setdefault(separator, []).append(rf"(?<=[\"'\\ ]{separator})|(?<={behind})")
    if not by_first:
        return r"(?!)"
    return "|".join(f"{re.escape(first)}(?:{'|'.join(rests)})" for first, rests in sorted(by_first.items()))


def _forms_of(secrets: Mapping[str, str]) -> list[Known]:
    """Every form of every secret that is long enough to be looked for."""
    forms: dict[str, str] = {}
    for name, secret in secrets.items():
        for text in _texts_of(secret[:MAX_SECRET_CHARS]):
            if len(text) >= MIN_SECRET_CHARS:
                forms.setdefault(text, f"[redacted:{name}]")
    return [Known(mark, text) for text, mark in forms.items()]


def _texts_of(secret: str) -> Iterable[str]:
    if len(secret.strip()) < MIN_SECRET_CHARS:
        return
    yield secret
    lines = [line.strip() for line in secret.splitlines()]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= MIN_LINE_CHARS and not line.startswith("-----"))
    for safe in QUOTED_BY:
        quoted = quote(secret, safe=safe)
        yield quoted
        yield _ESCAPED.sub(lambda escape: escape[0].lower(), quoted)
    yield quote_plus(secret)
    yield msgspec.json.encode(secret).decode()[1:-1]
    data = secret.encode("utf-8", "surrogateescape")
    yield data.hex()
    yield data.hex().upper()
    yield from _pieces(data.hex(), len(secret))
    for offset in range(3):
        # Of a secret inside something longer, the characters that depend on it alone.
        encoded = base64.b64encode(bytes(offset) + data).decode()
        first = (offset * 8 + 5) // 6
        last = (offset + len(data)) * 8 // 6
        for text in (encoded[first:last], encoded[first:last].replace("+", "-").replace("/", "_")):
            yield text
            yield from _pieces(text, len(secret))


def _pieces(text: str, secret_chars: int) -> Iterable[str]:
    """Of a long encoding, which programs break into lines wherever it comes: what stands whole on a line."""
    if len(text) > MIN_LINE_BREAK_CHARS and secret_chars <= MAX_KEY_CHARS:
        yield from (text[at : at + PIECE_CHARS] for at in range(0, len(text) - PIECE_CHARS + 1, PIECE_CHARS))
