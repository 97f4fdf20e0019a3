"""The presets: rules that speak where no rule of a user's does. Later ones are wider."""

from __future__ import annotations

from ottod.protocol.specs import PermissionRule, Preset

SESSION_TOOLS = ("spawn_agent", "handoff")
"""Tools that start sessions, which are bound by this one's rules as well."""

_READ = PermissionRule(effect="allow", permission="read", reason="reading is allowed")
_NONE = PermissionRule(effect="allow", permission="none", reason="it touches nothing")
_STRICT: tuple[PermissionRule, ...] = (
    _READ,
    _NONE,
    PermissionRule(effect="ask", reason="strict asks before everything but reading"),
)
_BALANCED: tuple[PermissionRule, ...] = (
    _READ,
    _NONE,
    PermissionRule(effect="allow", permission="write", reason="file tools reach the working directory only"),
    *(
        PermissionRule(effect="allow", tool=tool, reason="its session is bound by this one's rules")
        for tool in SESSION_TOOLS
    ),
    PermissionRule(effect="allow", tool="http", reason="it reaches only hosts that the agent's file names"),
)
_BALANCED_CONFINED: tuple[PermissionRule, ...] = (
    *_BALANCED,
    PermissionRule(effect="allow", permission="exec", reason="programs are confined"),
    PermissionRule(effect="ask", reason="balanced asks before what reaches beyond the sandbox"),
)
_BALANCED_UNCONFINED: tuple[PermissionRule, ...] = (
    *_BALANCED,
    PermissionRule(effect="ask", reason="balanced asks before programs run unconfined, and before all that sends"),
)
_AUTONOMOUS = (PermissionRule(effect="allow", reason="autonomous allows what no rule forbids"),)


def preset_rules(preset: Preset, *, is_confined: bool) -> tuple[PermissionRule, ...]:
    """A preset's rules. `is_confined`: programs that tools start are held to the working directory."""
    match preset:
        case "strict":
            return _STRICT
        case "balanced":
            return _BALANCED_CONFINED if is_confined else _BALANCED_UNCONFINED
        case "autonomous":
            return _AUTONOMOUS
