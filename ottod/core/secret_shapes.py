"""What a secret looks like that nobody has told us of: the well-known forms of keys, and what stands behind a name.

A shape is a row of steps, each a class of characters and how many of them. From the steps two expressions follow:
one that finds the whole, and one that says whether a text breaks off where the whole could still come. So a secret
that arrives in pieces is held back for exactly as long as it is undecided, and for no longer than its steps allow.

All shapes ask for a digit early in what they hide, where the form of the key does not already say enough: prose and
program text that only speak of keys stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

HEAD_CHARS = 3
"""A secret is looked for by its first characters."""
BEHIND_CHARS = 28
"""The longest name that a secret stands behind, with its quotes."""
SEPARATORS = ":="
WORD = "A-Za-z0-9_-"
VALUE = r"[^\s\"'`,;&<>()\[\]{}$\\|:]"
"""What a password after its name may consist of; nothing that program text would go on with."""
MAX_KEY_BODY_CHARS = 64 * 1024
"""Of a private key, between its first and its last line."""


class Step(msgspec.Struct, frozen=True):
    """Between `least` and `most` characters of a class."""

    chars: str
    least: int = 1
    most: int = 1


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """One form. The first `shown` steps stay visible: they say what is hidden, and are no part of it.

    `guard` is looked at where the hidden part begins. `tail` is what belongs to a secret that was recognised, as far
    as it goes; `ending` is what it ends with instead, at most MAX_KEY_BODY_CHARS further on. `after` is said behind
    the mark, `refused` must not follow. `is_word`: it begins where a word begins. `behind`: it begins behind one of
    these names, in any case of letters, and is an assignment; in the arguments of a tool call, where program text is
    written, assignments are left alone.
    """

    name: str
    steps: tuple[Step, ...]
    shown: int = 0
    guard: str = ""
    tail: str = ""
    ending: str = ""
    after: str = ""
    refused: str = ""
    is_word: bool = True
    behind: tuple[str, ...] = ()

    def heads(self) -> Iterator[str]:
        """The beginnings by which it is found; none for one that is found by what it stands behind."""
        if self.behind:
            return iter(())
        classes = [members(step.chars) for step in self.steps[:HEAD_CHARS]]
        return (a + b + c for a in classes[0] for b in classes[1] for c in classes[2])

    def whole(self) -> str:
        """An expression for the shortest text that decides it; the group is what is hidden."""
        shown = "".join(_counted(step) for step in self.steps[: self.shown])
        hidden = "".join(_counted(step) for step in self.steps[self.shown :])
        # Possessive: a character that must not follow cannot be avoided by taking one less.
        behind = f"+(?!{self.refused})" if self.refused else ""
        return f"{shown}({self.guard}{hidden}{behind})"

    def unfinished(self) -> str:
        """An expression for a text that ends before this is decided."""
        last = self.steps[-1]
        # What must not follow has to be seen before it is decided.
        expression = rf"{last.chars}{{0,{last.most if self.refused else last.least - 1}}}\Z"
        for step in reversed(self.steps[:-1]):
            expression = rf"(?:{step.chars}{{0,{step.most}}}\Z|{_counted(step)}{expression})"
        return expression

    def lead(self) -> str:
        """An expression for the steps that stay visible."""
        return "".join(_counted(step) for step in self.steps[: self.shown])


def members(chars: str) -> list[str]:
    """The characters of a small class."""
    return [chr(c) for c in range(128) if re.fullmatch(chars, chr(c))]


def _counted(step: Step) -> str:
    if step.least == step.most == 1:
        return step.chars
    return f"{step.chars}{{{step.least},{step.most}}}"


def is_behind(text: str, at: int, names: tuple[str, ...], *, since: int = 0) -> bool:
    """Whether one of the names ends before `at`, be it in quotes; nothing before `since` counts."""
    return text[max(since, at - BEHIND_CHARS) : at].rstrip("\"'\\ ").lower().endswith(names)


def _text(literal: str) -> tuple[Step, ...]:
    return tuple(Step(re.escape(c)) for c in literal)


def _any_case(literal: str) -> tuple[Step, ...]:
    return tuple(Step(f"[{c.lower()}{c.upper()}]" if c.isalpha() else re.escape(c)) for c in literal)


def _digit_within(chars: int, klass: str) -> str:
    """A digit among the first so many characters. `klass` is the class without its digits."""
    return f"(?={klass}{{0,{chars - 1}}}[0-9])"


def _key(name: str, *lead: Step, body: str = "A-Za-z0-9", least: int, guard: str = "") -> Shape:
    """A key that begins with fixed characters and goes on for as long as its alphabet does."""
    return Shape(name=name, steps=(*lead, Step(f"[{body}]", least, least)), guard=guard, tail=f"[{body}]")


_SEPARATOR = (Step("[:=]"), Step(" ", 0, 1), Step(r"\\", 0, 1), Step("[\"']", 0, 1))


def _assigned(name: str, *behind: str) -> Shape:
    steps = (*_SEPARATOR, Step(VALUE, 8, 64))
    return Shape(
        name=name,
        steps=steps,
        shown=len(_SEPARATOR),
        guard=_digit_within(8, VALUE.replace("[^", "[^0-9")),
        tail=VALUE,
        refused=r"[(\[]",
        behind=behind,
    )


_TOKEN_BODY = "A-Za-z0-9._~+/=-"

SHAPES: tuple[Shape, ...] = (
    _key("api-key", *_text("sk-"), body=WORD, least=20, guard="(?=sk-[A-Za-z_-]{0,19}[0-9])"),
    _key("github-token", *_text("gh"), Step("[pousr]"), Step("_"), least=30),
    _key("github-token", *_text("github_pat_"), body="A-Za-z0-9_", least=22),
    _key("gitlab-token", *_text("glpat-"), body=WORD, least=20),
    _key("google-key", *_text("AIza"), body=WORD, least=35),
    _key("hub-token", *_text("hf_"), least=30),
    _key("slack-token", *_text("xox"), Step("[abeoprs]"), Step("-"), body="A-Za-z0-9-", least=10),
    Shape(name="aws-key", steps=(Step("A"), Step("[KS]"), *_text("IA"), Step("[A-Z0-9]", 16, 16))),
    Shape(
        name="private-key",
        steps=(*_text("-----BEGIN "), Step("[A-Z0-9 ]", 0, 24), *_text("PRIVATE KEY-----")),
        ending="-----END [A-Z0-9 ]{0,24}PRIVATE KEY-----",
        is_word=False,
    ),
    Shape(
        name="jwt",
        steps=(*_text("eyJ"), Step(f"[{WORD}]", 8, 512), *_text(".eyJ"), Step(f"[{WORD}]", 8, 8)),
        tail=f"[.{WORD}]",
    ),
    Shape(
        name="authorization",
        steps=(*_any_case("bearer"), Step(" ", 1, 2), Step(f"[{_TOKEN_BODY}]", 16, 16)),
        shown=7,
        guard=_digit_within(16, f"[{_TOKEN_BODY.replace('0-9', '')}]"),
        tail=f"[{_TOKEN_BODY}]",
    ),
    Shape(
        name="authorization",
        steps=(*_any_case("basic"), Step(" ", 1, 2), Step("[A-Za-z0-9+/]", 12, 12)),
        shown=6,
        # Encoded text mixes its letters as no word does.
        guard="(?=[A-Za-z+/]{0,11}[0-9]|[A-Za-z0-9+/]{0,10}[a-z][A-Z])",
        tail="[A-Za-z0-9+/=]",
    ),
    Shape(
        name="authorization",
        steps=(*_SEPARATOR, Step(f"[{_TOKEN_BODY}]", 16, 16)),
        shown=len(_SEPARATOR),
        guard=_digit_within(16, f"[{_TOKEN_BODY.replace('0-9', '')}]"),
        tail=f"[{_TOKEN_BODY}]",
        behind=("authorization",),
    ),
    _assigned("password", "password", "passwd", "passphrase", "pwd"),
    _assigned("secret", "secret", "secret_key", "secret-key", "secretkey", "secret_access_key"),
    _assigned("token", "token"),
    _assigned("api-key", "api_key", "api-key", "apikey"),
    Shape(
        name="password",
        steps=(
            *_text("://"),
            Step(r"[^\s/:@\"'<>\\]", 1, 64),
            Step(":"),
            Step(r"[^\s/:@\"'<>\\]", 1, 128),
            Step("@"),
        ),
        shown=5,
        after="@",
        is_word=False,
    ),
)
"""In the order in which they are tried where several could begin."""
