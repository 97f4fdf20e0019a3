"""What a change does to a file, as a unified diff that somebody can judge: bounded, and with nothing hidden in it.

Characters that a reader would not see (controls, marks of direction, what has no width) are written as their numbers:
text that only a model notices must be noticed by who answers for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from ottod.settings.units import plural

CONTEXT_LINES = 3
MAX_COMPARED_LINES = 1500
"""On either side, besides what is the same before and behind; of more, all is shown as taken out and put in."""
MAX_DIFF_BYTES = 12 * 1024
"""Of a diff that is shown."""
MAX_LINE_CHARS = 1000


def unified_diff(path: str, before: bytes | None, after: bytes) -> str:
    """The whole diff; empty if nothing changes. `before` is None for a file that is new."""
    if before == after:
        return ""
    head = f"--- {'/dev/null' if before is None else f'a/{_visible(path)}'}\n+++ b/{_visible(path)}\n"
    old, new = _lines(before or b""), _lines(after)
    if old is None or new is None:
        size = len(before or b"")
        return f"{head}binary: {plural(size, 'byte')} {'becomes' if size == 1 else 'become'} {len(after)}\n"
    if not old and not new:
        return f"{head}an empty file\n"
    return head + "".join(_hunks(old, new))


def shown_diff(diff: str) -> str:
    """As much of it as is shown, in whole lines that are not too long; the last one says what is missing."""
    lines = [line[:MAX_LINE_CHARS] + ("…" if len(line) > MAX_LINE_CHARS else "") for line in diff.splitlines()]
    size = 0
    for number, line in enumerate(lines):
        size += len(line.encode("utf-8", "replace")) + 1
        if size > MAX_DIFF_BYTES:
            return (
                "\n".join((*lines[:number], f"… {len(lines) - number} more lines of the diff are not shown")) + "\n"
            )
    return "\n".join(lines) + "\n" if lines else ""


def _lines(data: bytes) -> list[str] | None:
    """With their ends; None of what is no text."""
    if b"\0" in data:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    lines = text.split("\n")
    ended = [line + "\n" for line in lines[:-1]]
    return [*ended, lines[-1]] if lines[-1] else ended


def _hunks(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    shorter = min(len(old), len(new))
    first = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    last = next((i for i in range(shorter - first) if old[-1 - i] != new[-1 - i]), shorter - first)
    # What is the same at both ends is not compared, but for the lines that are shown of it.
    first = max(0, first - CONTEXT_LINES)
    last = max(0, last - CONTEXT_LINES)
    a, b = old[first : len(old) - last], new[first : len(new) - last]
    for group in _groups(a, b):
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        yield f"@@ -{_span(i1 + first, i2 + first)} +{_span(j1 + first, j2 + first)} @@\n"
        for tag, i, i_end, k, k_end in group:
            if tag == "equal":
                yield from (_line(" ", line) for line in a[i:i_end])
                continue
            yield from (_line("-", line) for line in a[i:i_end])
            yield from (_line("+", line) for line in b[k:k_end])


def _groups(a: Sequence[str], b: Sequence[str]) -> list[list[tuple[str, int, int, int, int]]]:
    if max(len(a), len(b)) > MAX_COMPARED_LINES:
        return [[("replace", 0, len(a), 0, len(b))]]
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    return [[(str(tag), *at) for tag, *at in group] for group in matcher.get_grouped_opcodes(CONTEXT_LINES)]  # type: ignore[misc]


def _span(start: int, end: int) -> str:
    count = end - start
    begin = start + 1 if count else start
    return f"{begin}" if count == 1 else f"{begin},{count}"


def _line(mark: str, line: str) -> str:
    end = "" if line.endswith("\n") else "\n\\ No newline at end of file"
    return f"{mark}{_visible(line.removesuffix(chr(10)))}{end}\n"


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else f"<U+{ord(c):04X}>" for c in text)
