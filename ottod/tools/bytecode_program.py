"""Throws away bytecode that could stand for source that has changed since; keeps that of installed packages.

A program of its own, run in confinement by the project's Python before its tests, so it knows no more than that does.
Bytecode is known as stale by its source's size and whole seconds. An edit of the same length within the second of the
last run would be tested as it was before, so none of the project is kept. What is installed is kept where it was
compiled some seconds after its source was written: whoever changes that source later changes its second, too.
Argument: the directory's name in $TMPDIR.
"""

import os
import sys

INSTALLED = ("/site-packages/", "/dist-packages/", "/lib/python3", "/lib64/python3")
MARGIN_S = 3
"""A file can be compiled from what was read a moment before, and clocks of files are coarse."""


def main() -> None:
    """Walks the directory."""
    for directory, _, names in os.walk(os.path.join(os.environ["TMPDIR"], sys.argv[1])):
        for name in names:
            path = os.path.join(directory, name)
            try:
                if not is_sound(path):
                    os.unlink(path)
            except OSError:
                pass  # Another run of the session's was quicker.


def is_sound(path: str) -> bool:
    """Whether it can stand for nothing but its source as that is now."""
    if not any(part in path.replace(os.sep, "/") for part in INSTALLED):
        return False
    with open(path, "rb") as file:
        head = file.read(16)
        compiled_s = int(os.fstat(file.fileno()).st_mtime)
    # Magic number, flags, the source's seconds, its size: four bytes each. Flags mean that it is known by a digest.
    return len(head) == 16 and head[4:8] == bytes(4) and compiled_s >= int.from_bytes(head[8:12], "little") + MARGIN_S


if __name__ == "__main__":
    main()
