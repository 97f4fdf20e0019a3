"""Throws away bytecode that could stand for source that has changed since; keeps that of installed packages.

A program of its own, run in confinement by the project's Python before its tests, so it knows no more than that does.
Bytecode is known as stale by its source's size and whole seconds. An edit of the same length within the second of the
last run would be tested as it was before, so none of the project is kept. What is installed is kept where it was
compiled some seconds after the last change of its source and of the directories that this is installed in. Not what
the source says of its age counts, which installers set as they like, but when its file was changed or moved there.
Whatever is no plain file was put there by somebody else. Argument: the directory's name in $TMPDIR.
"""

from __future__ import annotations

import os
import stat
import sys

INSTALLED = ("/site-packages/", "/dist-packages/", "/lib/python3", "/lib64/python3")
MARGIN_S = 3
"""A file can be compiled from what was read a moment before, and clocks of files are coarse."""


def main() -> None:
    """Walks the directory."""
    top = os.path.join(os.environ["TMPDIR"], sys.argv[1])
    if os.path.islink(top):
        os.unlink(top)
    known: dict[str, float] = {}
    for directory, below, names in os.walk(top):
        links = [name for name in below if os.path.islink(os.path.join(directory, name))]
        for name in links + names:
            path = os.path.join(directory, name)
            try:
                if not is_sound(path, os.path.join(directory[len(top) :] or os.sep, name), known):
                    os.unlink(path)
            except OSError:
                pass  # Another run of the session's was quicker.


def is_sound(path: str, place: str, known: dict[str, float]) -> bool:
    """Whether it can stand for nothing but its source as that is now. `place`: where it would be without a prefix."""
    tops = [place.find(part) for part in INSTALLED if part in place]
    if not tops:
        return False
    try:
        # Opening a pipe without a writer would wait for one.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(number, "rb") as file:
        about = os.fstat(number)
        head = file.read(16) if stat.S_ISREG(about.st_mode) else b""
    # Magic number, flags, the source's seconds, its size: four bytes each. Flags mean that it is known by a digest.
    if len(head) != 16 or head[4:8] != bytes(4):
        return False
    directory, name = os.path.split(place)
    source = os.path.join(directory, name.partition(".")[0] + ".py")
    return about.st_mtime >= changed_s(source, place[: min(tops)] or os.sep, known) + MARGIN_S


def changed_s(path: str, top: str, known: dict[str, float]) -> float:
    """When a file, or a directory from `top` to it, was changed last: written, moved, or put in another's place."""
    if path not in known:
        try:
            # Of a link, it and what it leads to.
            own_s = max(os.stat(path).st_ctime, os.lstat(path).st_ctime)
        except OSError:
            own_s = float("inf")
        above = os.path.dirname(path)
        known[path] = own_s if path in (top, above) else max(own_s, changed_s(above, top, known))
    return known[path]


if __name__ == "__main__":
    main()
