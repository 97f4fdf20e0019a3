"""The files of a directory tree, without what .gitignore leaves out. Used by fs_list and grep."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ottod.errors import ToolError
from ottod.tools.base import DirEntry, Files
from ottod.tools.ignore_rules import IgnoreRules

MAX_IGNORE_FILE_BYTES = 256 * 1024
MAX_DEPTH = 64
ALWAYS_IGNORED = frozenset({".git", ".hg", ".svn"})

Rules = tuple[tuple[str, IgnoreRules], ...]


class Found(msgspec.Struct, frozen=True):
    """An entry and its path relative to the working directory."""

    path: str
    entry: DirEntry


def walk(files: Files, path: str, *, use_ignore_files: bool = True, max_depth: int = MAX_DEPTH) -> Iterator[Found]:
    """Entries in order of their paths, directories before their content. Symlinks are named and not followed.

    Ignore files of the directories above `path` count as well. What cannot be listed on the way is skipped.
    Raises: ToolError if `path` itself cannot be listed.
    """
    base = files.relative(path)
    rules: Rules = ()
    if use_ignore_files:
        above = [""]
        for part in base.split("/") if base != "." else ():
            above.append(f"{above[-1]}{part}/")
        for directory in above[:-1]:
            rules = _with_rules_of(files, directory, rules)
    prefix = "" if base == "." else base + "/"
    yield from _walk(files, prefix, files.list(base), rules, max_depth, use_ignore_files=use_ignore_files)


def _walk(
    files: Files, prefix: str, entries: list[DirEntry], rules: Rules, depth_left: int, *, use_ignore_files: bool
) -> Iterator[Found]:
    if use_ignore_files and any(entry.name == ".gitignore" for entry in entries):
        rules = _with_rules_of(files, prefix, rules)
    for entry in entries:
        path = prefix + entry.name
        if use_ignore_files and (entry.name in ALWAYS_IGNORED or is_ignored(path, entry.kind == "dir", rules)):
            continue
        yield Found(path, entry)
        if entry.kind == "dir" and depth_left > 1:
            try:
                below = files.list(path)
            except ToolError:
                continue
            yield from _walk(files, path + "/", below, rules, depth_left - 1, use_ignore_files=use_ignore_files)


def is_ignored(path: str, is_dir: bool, rules: Rules) -> bool:
    """True if the innermost ignore file with an opinion on the path says so."""
    for prefix, of_file in reversed(rules):
        verdict = of_file.verdict(path[len(prefix) :] + ("/" if is_dir else ""))
        if verdict is not None:
            return verdict
    return False


def _with_rules_of(files: Files, prefix: str, rules: Rules) -> Rules:
    try:
        data = files.read(f"{prefix}.gitignore", max_bytes=MAX_IGNORE_FILE_BYTES)
    except ToolError:
        return rules
    return (*rules, (prefix, IgnoreRules(data.decode("utf-8", "replace").splitlines())))
