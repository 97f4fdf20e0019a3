"""What of a session's own work waits for room, as its worker tells it: changes are announced once."""

from __future__ import annotations

from ottod.protocol.events import BacklogChanged
from ottod.worker.link import Link


class AnnouncedBacklog:
    """How much waits, and what was last said of it. An incarnation begins with nothing that waits."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._announced = 0

    def has(self, waiting: int, *, running: int, limit: int) -> None:
        """So much could begin if there were room."""
        if waiting != self._announced:
            self._announced = waiting
            self._link.emit(BacklogChanged(running=running, waiting=waiting, limit=limit))
