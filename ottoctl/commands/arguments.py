"""Arguments that several commands take, with their completion."""

from __future__ import annotations

from typing import Annotated

import typer

COMPLETION_TIMEOUT_S = 1.0


def complete_sessions(incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of sessions, live ones first; nothing when no daemon answers quickly."""
    from ottoctl.sync import SyncOtto
    from ottod.errors import OttoError

    try:
        with SyncOtto.connect(timeout_s=COMPLETION_TIMEOUT_S, client="completion") as otto:
            sessions = otto.list(all=True, limit=200)
    except OttoError:
        return []
    wanted = incomplete if incomplete.startswith("s-"[: len(incomplete)]) else f"s-{incomplete}"
    found = [s for s in sessions if s.session.startswith(wanted)]
    found.sort(key=lambda s: s.state == "ended")
    named = [s for s in sessions if s.is_named and s.name.startswith(incomplete) and s.state != "ended"]
    return [
        *((s.name, f"{s.state} {s.agent} {s.session}") for s in named),
        *((s.session, f"{s.state} {s.agent} {s.title or s.task}"[:60].split("\n")[0]) for s in found),
    ]


def complete_agents(incomplete: str) -> list[tuple[str, str]]:
    """Names of agents that can be seen from here."""
    from ottoctl.agents import visible_agents
    from ottod.errors import OttoError

    try:
        agents = visible_agents()
    except OttoError:
        return []
    return [(a.name, (a.spec.description if a.spec else "")[:60]) for a in agents if a.name.startswith(incomplete)]


SessionId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="A session's id, the beginning of it, or its name", autocompletion=complete_sessions
    ),
]
SessionIds = Annotated[
    list[str],
    typer.Argument(metavar="ID...", help="Ids, beginnings of ids, or names", autocompletion=complete_sessions),
]
NewName = Annotated[
    str,
    typer.Option(
        "--name", metavar="NAME", help="What stands for its id in every command; no other living session may have it"
    ),
]
