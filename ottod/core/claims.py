"""What a tool call claims to do, piece by piece: each path, program and host is one claim, and each must be allowed.

A claim is *open* if only its beginning is known, or nothing of it. A *mention* is a word of a command line that may
be a path or an address: it needs no leave, but rules that restrict by path or host meet it. A tool that gives no
facts makes claims that are *undeclared*: rules that restrict by path, command or host meet them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from ottod.core.command_line import CommandLine, Program, Target, analyse, analyse_words
from ottod.core.pattern import normalise_path
from ottod.core.team import PARENT, role_of
from ottod.ids import PREFIX
from ottod.protocol.toolio import Facts

MAX_CLAIMS = 600
"""Of one call; what is beyond becomes one claim of which nothing is known."""
SHOWN_CHARS = 300
Kind = Literal["read", "write", "exec", "net", "none"]
KINDS: tuple[Kind, ...] = ("read", "write", "exec", "net")
Subject = Literal["path", "command", "host", "target", ""]

_PROC_ROOT = re.compile(r"/+proc/+[^/]+/+(?:task/+[^/]+/+)?(root|cwd)(?=/|\Z)")
_HOST = re.compile(r"[a-z0-9_.:\[\]-]+\Z")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/:?#\s]*)")


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a call does. `object` is a normalised path, a program with its words, a host, or an agent.

    `forms` are other ways to say it, which rules that restrict look at as well. `is_tree`: with all below it.
    `exact` says it so that it cannot mean anything else, where `object` could; `place` is where a program runs, if
    not in the working directory, `is_moved`: somewhere else again.
    """

    kind: Kind
    subject: Subject = ""
    object: str = ""
    forms: tuple[str, ...] = ()
    exact: str = ""
    place: str = ""
    is_moved: bool = False
    is_open: bool = False
    is_tree: bool = False
    is_altered: bool = False
    is_mention: bool = False
    is_undeclared: bool = False

    def __str__(self) -> str:
        """`write src/a.py`, `exec git status`, `exec rm …`."""
        text = " ".join(self.object.split())
        shown = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
        return f"{self.kind} {shown}{'…' if self.is_open else ''}".rstrip()


def claims_of(permissions: Iterable[str], facts: Facts | None, *, root: str) -> tuple[Claim, ...]:
    """The claims of a call of a tool with these permissions. `root` is the working directory, absolute."""
    needed: list[Kind] = [kind for kind in KINDS if kind in set(permissions)]
    if facts is None:
        # Of a tool that says nothing at all, anything is to be expected.
        return tuple(_bare(kind, is_undeclared=True) for kind in needed or KINDS)
    found: list[Claim] = []
    found += [_path("read", path, root) for path in facts.reads]
    found += [_path("read", path, root, is_tree=True) for path in facts.trees]
    found += [_path("write", path, root) for path in facts.writes]
    lines = [analyse(line) for line in facts.commands] + [analyse_words(words) for words in facts.programs]
    for line in lines:
        found += _commanded(line, root, normalise_path(facts.cwd, root))
    found += [_host("net", host, deed=facts.deed) for host in facts.hosts]
    found += [_agent("exec" if "exec" in needed else "none", name) for name in facts.agents]
    if facts.keeps:
        found.append(_bare("write"))
    covered = {claim.kind for claim in found}
    # What the tool needs besides, without naming an object.
    if not found:
        found += [_bare(kind) for kind in needed] or [_bare("none")]
    elif "net" in needed and "net" not in covered:
        found.append(_bare("net"))
    if len(found) > MAX_CLAIMS:
        found = [*found[:MAX_CLAIMS], *(_bare(kind, is_undeclared=True) for kind in covered)]
    return tuple(dict.fromkeys(found))


def with_real_paths(claims: Iterable[Claim], real: Mapping[str, str]) -> tuple[Claim, ...]:
    """The claims, and the same for where their paths lead once symlinks are followed. `real`: object → path."""
    found: list[Claim] = []
    for claim in claims:
        found.append(claim)
        if claim.subject == "path" and not claim.is_open and real.get(claim.object, claim.object) != claim.object:
            found.append(msgspec.structs.replace(claim, object=real[claim.object]))
    return tuple(dict.fromkeys(found))


def _bare(kind: Kind, *, is_undeclared: bool = False) -> Claim:
    return Claim(kind=kind, is_undeclared=is_undeclared, is_open=is_undeclared)


def _path(kind: Kind, path: str, root: str, *, is_tree: bool = False) -> Claim:
    if "\0" in path:
        return Claim(kind=kind, subject="path", is_open=True)
    return Claim(kind=kind, subject="path", object=plain_path(path, root), is_tree=is_tree)


def plain_path(path: str, root: str) -> str:
    """A path by its text, relative to the working directory; `/proc/self/root` and its like are looked through."""
    for _ in range(8):
        match = _PROC_ROOT.match(path)
        if match is None:
            break
        path = (root if match.group(1) == "cwd" else "") + (path[match.end() :] or "/")
    return normalise_path(path, root)


def host_claim(host: str) -> Claim:
    """The claim to reach a host."""
    return _host("net", host)


def _agent(kind: Kind, name: str) -> Claim:
    """Another agent. Who is behind an id or `parent` only root knows, so every rule that restricts meets it."""
    if not name or name == PARENT or name.startswith(PREFIX):
        return Claim(kind=kind, subject="target", object=name, is_open=True)
    role = role_of(name)
    return Claim(kind=kind, subject="target", object=name, forms=(role,) if role != name else ())


def _host(kind: Kind, host: str, *, is_mention: bool = False, deed: str = "") -> Claim:
    name = host.lower().rstrip(".")
    return Claim(
        kind=kind,
        subject="host",
        object=name,
        exact=f"{deed} {name}" if deed else "",
        is_open=not _HOST.match(name),
        is_mention=is_mention,
    )


def _commanded(line: CommandLine, root: str, cwd: str) -> list[Claim]:
    place = "" if cwd == "." else cwd
    found = [_program(program, place) for program in line.programs] or [Claim(kind="exec", subject="command")]
    found += [_target("read", target, root, cwd) for target in line.reads]
    found += [_target("write", target, root, cwd) for target in line.writes]
    found += [_host("net", host) for host in line.hosts]
    for target in line.mentions:
        if url := _URL.search(target.text.lower()):
            found.append(_host("net", url.group(1), is_mention=True))
        found.append(msgspec.structs.replace(_target("read", target, root, cwd), is_mention=True))
    return found


def _program(program: Program, place: str) -> Claim:
    name, _, rest = program.text.partition(" ")
    base = name.rsplit("/", 1)[-1]
    forms = [f"{base} {rest}" if rest else base] if base != name else []
    # A rule that names a program and nothing more means it with whatever arguments.
    if " " in program.text:
        forms.append(base)
    return Claim(
        kind="exec",
        subject="command",
        object=program.text,
        forms=tuple(forms),
        exact=program.exact if program.exact != program.text else "",
        place=place,
        is_moved=program.is_moved,
        is_open=program.is_open,
        is_altered=program.is_altered,
        is_mention=program.is_transparent,
    )


def _target(kind: Kind, target: Target, root: str, cwd: str) -> Claim:
    if not target.text:
        return Claim(kind=kind, subject="path", is_open=True)
    base = cwd if cwd.startswith("/") else f"{root}/{cwd}"
    path = target.text if target.text.startswith("/") else f"{base}/{target.text}"
    plain = plain_path(path, root)
    # Of an open path the end is kept as it was: `src/` and what is not known of it.
    if target.is_open and target.text.endswith("/") and plain != "/":
        plain += "/"
    return Claim(kind=kind, subject="path", object=plain, is_open=target.is_open)
