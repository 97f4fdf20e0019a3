"""How root goes, and what its service manager hears of that.

As a service root's exit status decides over its sessions: they end when systemd sees no need for another root
(docs/adr/0011). So it is told whenever sessions were left, whoever asked for that.
"""

from __future__ import annotations

from typing import Literal

from ottod.errors import RefusedError

Departure = Literal["stop", "leave", "break", "upgrade"]
"""With its sessions, without them, without them because it cannot go on, or to become another program."""
BROKEN = 1
LEFT = 75
"""A service that left its sessions to the next root. Its unit takes that for a success, and starts another."""


def exit_status(departure: Departure, *, unit: str) -> int:
    """Of a root whose sessions live in `unit`; that is empty if it is no service."""
    match departure:
        case "break":
            return BROKEN
        case "leave" if unit:
            return LEFT
        case _:
            return 0


def refuse_to_leave(unit: str, *, can_be_restarted: bool) -> None:
    """Raises RefusedError if root may not go for good and leave its sessions, because systemd would end them."""
    if not unit:
        return
    root = unit.removesuffix(".service").replace("otto-sessions", "ottod")
    restart = f"systemctl restart {root}" if "@" in unit else f"systemctl --user restart {root}"
    raise RefusedError(
        "systemd ends the sessions of a service that is stopped",
        mend=f"`{restart}` gives them another daemon; without --keep-sessions they end with this one"
        if can_be_restarted
        else "they live in the daemon's own unit, and end with it: stop it without --keep-sessions",
    )
