"""The searcher that grep starts where ripgrep is missing: a program of its own, so that it can be killed.

Its source is passed to `python -I -S -c`; it uses the standard library only. A regular expression that backtracks for
ever holds the interpreter's lock and could not be stopped inside a worker.

Arguments: a JSON object {pattern, literal, ignore_case, context, limit}. Standard input: paths relative to the
working directory, each ended by a NUL byte. Output: as ripgrep prints it, `path:line:text`, context with `-` for `:`.
Exit status: 0 found, 1 nothing found, 2 bad pattern.
"""

import json
import os
import re
import stat
import sys

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_LINE_CHARS = 400


def main() -> int:
    """Searches all files in the given order, until the limit of matching lines."""
    options = json.loads(sys.argv[1])
    pattern = re.escape(options["pattern"]) if options["literal"] else options["pattern"]
    try:
        wanted = re.compile(pattern, re.IGNORECASE if options["ignore_case"] else 0)
    except (re.error, RecursionError, OverflowError) as error:
        print(f"regex parse error: {error}", flush=True)
        return 2
    left = options["limit"]
    is_found = False
    for name in sys.stdin.buffer.read().split(b"\0"):
        if name and left > 0:
            count = search(os.fsdecode(name), wanted, options["context"], left)
            is_found = is_found or count > 0
            left -= count
    return 0 if is_found else 1


def search(path: str, wanted: "re.Pattern[str]", context: int, limit: int) -> int:
    """Prints the matches of one file; the number of matching lines."""
    lines = read_lines(path)
    count, printed = 0, 0
    for number, line in enumerate(lines, 1):
        if not wanted.search(line):
            continue
        count += 1
        first = max(number - context, printed + 1)
        if context and printed and first > printed + 1:
            print("--")
        for near in range(first, min(number + context, len(lines)) + 1):
            mark = ":" if near == number or wanted.search(lines[near - 1]) else "-"
            print(f"{shown(path)}{mark}{near}{mark}{clip(lines[near - 1])}")
            printed = near
        sys.stdout.flush()
        if count >= limit:
            break
    return count


def read_lines(path: str) -> list[str]:
    """The lines of a text file; none for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            return []
        data = file.read(MAX_FILE_BYTES)
    if b"\0" in data[:8192]:
        return []
    lines = data.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def shown(path: str) -> str:
    """A file's name that can be printed."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def clip(line: str) -> str:
    """A line that does not fill the screen."""
    return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + " [… cut]"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
