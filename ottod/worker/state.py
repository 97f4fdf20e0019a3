"""The session's state, as its worker tells it: changes are announced once, moments between two turns are not."""

from __future__ import annotations

from ottod.core.lifecycle import Happening, next_state
from ottod.protocol.events import SessionState, SessionStateChanged
from ottod.worker.link import Link


class AnnouncedState:
    """Where the session is, and what was last said of it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.current: SessionState = "starting"
        self._announced: SessionState = "starting"

    def happened(self, happening: Happening, reason: str = "", *, is_passing: bool = False) -> None:
        """Moves on. A state that is only passed through is not announced: nobody should take it for a rest."""
        self.current = next_state(self.current, happening)
        if is_passing or self.current == self._announced:
            return
        previous, self._announced = self._announced, self.current
        self._link.emit(SessionStateChanged(state=self.current, previous=previous, reason=reason))
