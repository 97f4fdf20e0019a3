"""Which messages a session has accepted already, by their keys: however often one is delivered, it is heard once.

A key begins with its sender's id and a slash. So many of each sender's are remembered as that one can have on their
way at a time, and more; of senders, those that spoke last.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_OF_SENDER = 64
"""Of the newest keys. More calls of one session cannot be under way when it is lost."""
MAX_SENDERS = 256


class Heard:
    """The keys of one session's messages."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys: dict[str, dict[str, None]] = {}
        for key in keys:
            self.add(key)

    def __contains__(self, key: str) -> bool:
        return key in self._keys.get(_sender(key), ())

    def add(self, key: str) -> None:
        """It has been accepted."""
        sender = _sender(key)
        own = self._keys.pop(sender, {})
        own[key] = None
        self._keys[sender] = own
        if len(own) > MAX_OF_SENDER:
            del own[next(iter(own))]
        if len(self._keys) > MAX_SENDERS:
            del self._keys[next(iter(self._keys))]

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them, such that adding them in this order gives the same."""
        return tuple(key for own in self._keys.values() for key in own)


def _sender(key: str) -> str:
    return key.partition("/")[0]
