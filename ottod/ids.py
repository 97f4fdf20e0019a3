"""Session ids: short enough to type, and exactly one 50-bit integer so that a record header can hold them.

A session id is `s-` and ten characters of Crockford's base 32 (no i, l, o, u). The same id as an integer is the
*session key* of the ring and of the wire. Randomness is an argument: nothing here reads a clock or a device.
"""

from __future__ import annotations

from functools import lru_cache

from ottod.errors import OttoError

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS = {c: i for i, c in enumerate(ALPHABET)}
ID_CHARS = 10
KEY_BITS = 5 * ID_CHARS
KEY_MAX = (1 << KEY_BITS) - 1
PREFIX = "s-"


class BadSessionId(OttoError):
    """The text is not a session id or a prefix of one."""

    code = "bad_session_id"


@lru_cache(maxsize=4096)
def session_id(key: int) -> str:
    """The id of a session key (0 ≤ key < 2⁵⁰). Raises ValueError outside that range."""
    if not 0 <= key <= KEY_MAX:
        raise ValueError(f"session key out of range: {key}")
    return PREFIX + "".join(ALPHABET[(key >> shift) & 31] for shift in range(KEY_BITS - 5, -1, -5))


def session_key(sid: str) -> int:
    """The key of a whole session id. Raises BadSessionId."""
    digits = sid[len(PREFIX) :]
    if not sid.startswith(PREFIX) or len(digits) != ID_CHARS:
        raise BadSessionId(f"not a session id: {sid!r}", mend="ids look like s-7f3k2m9qxa; see `ottoctl ps -a`")
    key = 0
    for c in digits:
        if c not in _DIGITS:
            raise BadSessionId(f"not a session id: {sid!r}", mend="ids look like s-7f3k2m9qxa; see `ottoctl ps -a`")
        key = key << 5 | _DIGITS[c]
    return key


def key_from_bytes(random: bytes) -> int:
    """A session key from at least 7 random bytes."""
    return int.from_bytes(random[:7], "little") & KEY_MAX


def normalise_prefix(text: str) -> str:
    """An id prefix as typed (with or without `s-`, any case) in canonical form. Raises BadSessionId."""
    typed, text = text, text.strip().lower()
    if not text.startswith(PREFIX):
        text = PREFIX + text
    digits = text[len(PREFIX) :]
    if not digits or len(digits) > ID_CHARS or any(c not in _DIGITS for c in digits):
        raise BadSessionId(f"not a session id: {typed!r}", mend="ids look like s-7f3k2m9qxa; see `ottoctl ps -a`")
    return text
