"""`--filter KEY=VALUE` of `ottoctl ps`: what is asked for, as the request says it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import msgspec

from ottod.errors import OttoError
from ottod.protocol.cause import CauseKind
from ottod.protocol.events import SessionState
from ottod.protocol.requests import ListSessions

KEYS = ("state", "agent", "parent", "name")
STATES: tuple[str, ...] = get_args(SessionState)
CAUSES: tuple[str, ...] = get_args(CauseKind)


def filtered(request: ListSessions, filters: Iterable[str], states: Iterable[str] = ()) -> ListSessions:
    """The request, with filters. A key given twice, or with several values, wants any of them; two keys want both.

    Raises OttoError for a key or a state that there is not.
    """
    found: dict[str, list[str]] = {key: [] for key in KEYS}
    found["state"] += [state for given in states for state in given.split(",")]
    for given in filters:
        key, equals, values = given.partition("=")
        if key not in KEYS or not equals or not values:
            message = f"no such filter: {key}" if equals and key not in KEYS else f"not a filter: {given}"
            raise OttoError(message, mend=f"write KEY=VALUE, with one of {', '.join(KEYS)}", code="usage")
        found[key] += values.split(",")
    for state in found["state"]:
        if state not in STATES and state not in CAUSES:
            known = f"one of {', '.join(STATES)}; or an outcome: {', '.join(CAUSES)}"
            raise OttoError(f"no such state: {state}", mend=known, code="usage")
    changes = {
        "states": [state for state in found["state"] if state in STATES],
        "causes": [state for state in found["state"] if state not in STATES],
        "agents": found["agent"],
        "parents": found["parent"],
        "names": found["name"],
    }
    return msgspec.structs.replace(request, **{name: tuple(values) for name, values in changes.items()})


def complete_filter(incomplete: str) -> list[str]:
    """Keys, and the states and outcomes that one of them takes."""
    values = [f"state={value}" for value in (*STATES, *CAUSES)] if incomplete.startswith("state=") else []
    return [text for text in (*(f"{key}=" for key in KEYS), *values) if text.startswith(incomplete)]
