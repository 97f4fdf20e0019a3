"""Patterns of permission rules: what matches, what might, and which of two says more.

Text patterns (tools, agents, commands, hosts) are globs: `*` any characters, `?` one, `[ab]`, `[!ab]`. Path patterns
go by component, as .gitignore does: `*` stays within one, `**` is any number of them, a pattern without a slash holds
at any depth, and whatever matches a directory matches all below it. They are relative to the working directory, or
absolute.

Of some texts only the beginning is known (`rm $X`). A rule that restricts meets such a text if any continuation of it
matches; a rule that allows, only if every continuation does.

One pattern is more specific than another if it matches less, and everything that it matches the other matches too.
That is decided on the patterns themselves, and errs towards no: patterns that merely overlap are not comparable.
"""

from __future__ import annotations

import posixpath
from functools import lru_cache
from typing import NamedTuple

MAX_PATTERN_CHARS = 4096


class Token(NamedTuple):
    """One element of a glob: a literal character, any one, any number of them, or one of a set."""

    kind: str
    chars: str = ""


STAR = Token("star")
ANY = Token("any")


@lru_cache(maxsize=4096)
def tokens(pattern: str) -> tuple[Token, ...]:
    """A glob taken apart. A bracket that is never closed is a literal one, as in fnmatch."""
    found: list[Token] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            if not found or found[-1] != STAR:
                found.append(STAR)
        elif char == "?":
            found.append(ANY)
        elif char == "[" and (end := pattern.find("]", at + 2 + (pattern[at + 1 : at + 2] == "!"))) > 0:
            found.append(Token("set", pattern[at + 1 : end]))
            at = end
        else:
            found.append(Token("literal", char))
        at += 1
    return tuple(found)


def _accepts(token: Token, char: str) -> bool:
    if token.kind == "set":
        is_negated = token.chars.startswith("!")
        members = token.chars[1:] if is_negated else token.chars
        is_in = False
        at = 0
        while at < len(members):
            if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
                is_in |= members[at] <= char <= members[at + 2]
                at += 3
            else:
                is_in |= members[at] == char
                at += 1
        return is_in != is_negated
    return token.kind == "any" or token.chars == char


def _closure(glob: tuple[Token, ...], states: set[int]) -> set[int]:
    """The places in a glob that can be reached without reading: a star may stand for nothing."""
    found = set(states)
    for state in states:
        while state < len(glob) and glob[state] == STAR:
            state += 1
            found.add(state)
    return found


def _run(glob: tuple[Token, ...], text: str) -> set[int]:
    states = _closure(glob, {0})
    for char in text:
        reached = {s if glob[s] == STAR else s + 1 for s in states if s < len(glob) and _reads(glob[s], char)}
        states = _closure(glob, reached)
        if not states:
            break
    return states


def _reads(token: Token, char: str) -> bool:
    return token == STAR or _accepts(token, char)


def matches(pattern: str, text: str) -> bool:
    """Whether the glob matches the whole text."""
    glob = tokens(pattern)
    return len(glob) in _run(glob, text)


def may_match(pattern: str, beginning: str) -> bool:
    """Whether it matches any text that begins so."""
    return bool(_run(tokens(pattern), beginning))


def must_match(pattern: str, beginning: str) -> bool:
    """Whether it matches every text that begins so."""
    glob = tokens(pattern)
    return bool(glob) and glob[-1] == STAR and len(glob) - 1 in _run(glob, beginning)


@lru_cache(maxsize=4096)
def covers(wide: str, narrow: str) -> bool:
    """Whether everything that `narrow` matches is matched by `wide`; False also where that is hard to tell."""
    outer, inner = tokens(wide), tokens(narrow)
    states = _closure(outer, {0})
    for token in inner:
        reached: set[int] = set()
        for state in states:
            if state == len(outer):
                continue
            here = outer[state]
            if here == STAR:
                reached.add(state)
            elif token != STAR and (here in (ANY, token) or _reads_literal(here, token)):
                reached.add(state + 1)
        states = _closure(outer, reached)
    return len(outer) in states


def _reads_literal(here: Token, token: Token) -> bool:
    return token.kind == "literal" and _accepts(here, token.chars)


# ------------------------------------------------------------------ paths


def normalise_path(path: str, root: str) -> str:
    """A path relative to `root` where it lies inside (`.` for the root itself), absolute elsewhere. By its text."""
    absolute = "/" + posixpath.normpath(posixpath.join(root, path)).lstrip("/")
    home = root.rstrip("/") or "/"
    if absolute == home:
        return "."
    prefix = home.rstrip("/") + "/"
    return absolute[len(prefix) :] if absolute.startswith(prefix) else absolute


HERE, TOP = "", "/"
"""The first component of a path inside the working directory, and of any other. No name is equal to either."""


@lru_cache(maxsize=4096)
def path_parts(pattern: str) -> tuple[str, ...]:
    """A path pattern's components, `**` before one that holds at any depth. What is below is always meant too."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if parts in (["*"], ["**"]) and not pattern.startswith(("/", ".")):
        return ()
    while parts and parts[-1] == "**":
        parts.pop()
    if pattern.startswith("/"):
        return (TOP, *parts)
    is_anchored = "/" in pattern.rstrip("/") or not parts
    return (HERE, *parts) if is_anchored else ("**", *parts)


def _components(path: str) -> tuple[str, ...]:
    parts = (part for part in path.split("/") if part not in ("", "."))
    return (TOP if path.startswith("/") else HERE, *parts)


def _part_reads(part: str, component: str) -> bool:
    if component in (HERE, TOP) or part in (HERE, TOP):
        return part == component
    return matches(part, component)


def path_matches(pattern: str, path: str) -> bool:
    """Whether a normalised path, or a directory above it, is what the pattern names."""
    return _path_run(path_parts(pattern), _components(path))[0]


def path_may_match_below(pattern: str, path: str) -> bool:
    """Whether the pattern matches the path, or might match anything below it."""
    is_match, is_open = _path_run(path_parts(pattern), _components(path))
    return is_match or is_open


def path_may_begin(pattern: str, beginning: str) -> bool:
    """Whether the pattern may match a path that begins so, in the component where it breaks off."""
    head, _, partial = beginning.rpartition("/")
    parts = path_parts(pattern)
    states = _path_closure(parts, {0})
    for component in _components(head or ("/" if beginning.startswith("/") else "")):
        if len(parts) in states:
            return True
        reached = {
            s if parts[s] == "**" else s + 1
            for s in states
            if s < len(parts) and (parts[s] == "**" or _part_reads(parts[s], component))
        }
        states = _path_closure(parts, reached)
    if len(parts) in states:
        return True
    named = [parts[s] for s in states if s < len(parts) and parts[s] not in ("**", HERE, TOP)]
    return any(may_match(part, partial) for part in named)


def _path_run(parts: tuple[str, ...], components: tuple[str, ...]) -> tuple[bool, bool]:
    """Whether a beginning of the path matches the whole pattern, and whether more components could."""
    states = _path_closure(parts, {0})
    for component in components:
        if len(parts) in states:
            return True, True
        reached = {
            s if parts[s] == "**" else s + 1
            for s in states
            if s < len(parts) and (parts[s] == "**" or _part_reads(parts[s], component))
        }
        states = _path_closure(parts, reached)
        if not states:
            return False, False
    return len(parts) in states, True


def _path_closure(parts: tuple[str, ...], states: set[int]) -> set[int]:
    found = set(states)
    for state in states:
        while state < len(parts) and parts[state] == "**":
            state += 1
            found.add(state)
    return found


@lru_cache(maxsize=4096)
def path_covers(wide: str, narrow: str) -> bool:
    """As `covers`, for path patterns."""
    outer, inner = path_parts(wide), path_parts(narrow)
    states = _path_closure(outer, {0})
    if len(outer) in states:
        return True
    for part in inner:
        reached: set[int] = set()
        for state in states:
            if state < len(outer):
                here = outer[state]
                if here == "**":
                    reached.add(state)
                elif part != "**" and _part_covers(here, part):
                    reached.add(state + 1)
        states = _path_closure(outer, reached)
        if len(outer) in states:
            return True
    return False


def _part_covers(wide: str, narrow: str) -> bool:
    if wide in (HERE, TOP) or narrow in (HERE, TOP):
        return wide == narrow
    return covers(wide, narrow)
