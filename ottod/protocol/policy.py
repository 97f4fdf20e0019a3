"""What decides about tool calls, as it travels from root to a worker: rules by authority, and standing answers."""

from __future__ import annotations

from typing import Literal

from ottod.protocol.specs import AgentSpec, PermissionRule, Preset, Spec


class Authority(Spec, frozen=True, kw_only=True):
    """Rules that are weighed against each other. Each authority must allow a call by itself: none lifts another.

    `agent` is whose they are: what `agent` conditions are compared with. Where no rule speaks the preset does;
    without one, silence allows. `is_hard`: Otto's own, which only count where it is certain that they hold, and not
    for paths that were `granted`.
    """

    name: str
    agent: str = ""
    preset: Preset | Literal[""] = ""
    rules: tuple[PermissionRule, ...] = ()
    is_hard: bool = False
    granted: tuple[str, ...] = ()


class StandingGrant(Spec, frozen=True, kw_only=True):
    """Leave that somebody gave for all sessions of an agent: for one tool and exactly these claims, in one directory.

    `source` is the agent's file: another agent of the same name is another agent. `expires_at_ns` is wall clock.
    """

    grant: str
    agent: str
    source: str = ""
    cwd: str = ""
    tool: str
    claims: tuple[str, ...] = ()
    by: str = ""
    reason: str = ""
    at_ns: int = 0
    expires_at_ns: int | None = None
    session: str = ""
    approval: str = ""
    """Where it was given."""


class Hypothesis(Spec, frozen=True, kw_only=True):
    """A call that nobody has made, for a process that knows the tools to say what would become of it."""

    spec: AgentSpec
    authorities: tuple[Authority, ...]
    grants: tuple[StandingGrant, ...] = ()
    tool: str
    arguments: str = "{}"
    cwd: str
    run_mode: Literal["interactive", "headless"] = "interactive"
    is_confined: bool = True
    isolation: dict[str, str] = {}
    """What this host gives, by layer."""
