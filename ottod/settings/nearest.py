"""The word that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or an empty string."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.65)
    return found[0] if found else ""


def suggestion(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """A mend: `did you mean …?`, or all there is when the list is short, or `otherwise`."""
    names = sorted(known)
    close = nearest(word, names)
    if close:
        return f"did you mean {close!r}?"
    if otherwise:
        return otherwise
    return f"use one of: {', '.join(names)}" if names else ""
