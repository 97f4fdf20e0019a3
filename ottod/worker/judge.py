"""What the rules say of a call: its claims, looked at where their paths really lead, before all authorities.

Between that and the moment of use a path can come to lead elsewhere: somebody may think about it for hours. So file
tools ask again, with the place that they have really opened (`objection`), and so does the web, with each host that a
redirect leads to (`host_objection`).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

from ottod.core.claims import Claim, claims_of, host_claim, with_real_paths
from ottod.core.pattern import normalise_path
from ottod.core.permission import Call, Verdict, decide, hard_denies, notes_guard
from ottod.errors import ToolError
from ottod.protocol.model import ToolCall
from ottod.protocol.policy import Authority
from ottod.protocol.specs import AgentSpec
from ottod.protocol.toolio import Facts
from ottod.tools.arguments import decode_arguments
from ottod.tools.base import Tool

MAX_JUDGED = 1000
"""Calls whose claims are remembered for when they run."""


class Judged(NamedTuple):
    """What was said of a call before it began."""

    claims: tuple[Claim, ...]
    needed_leave: bool


_UNDER_WAY: ContextVar[tuple[str, Judged] | None] = ContextVar("call under way", default=None)


class Judge:
    """One session's. `is_confined`: programs that its tools start are held to the working directory."""

    def __init__(
        self,
        *,
        authorities: tuple[Authority, ...],
        tools: Mapping[str, Tool[Any]],
        cwd: str,
        run_mode: str,
        is_confined: bool,
    ) -> None:
        self._authorities = authorities
        self._tools = tools
        self._cwd = os.path.realpath(cwd)
        self._run_mode = run_mode
        self._is_confined = is_confined
        self._has_path_rules = any(rule.path for each in authorities if not each.is_hard for rule in each.rules)
        self._judged: OrderedDict[str, Judged] = OrderedDict()

    # ------------------------------------------------------------ before a call

    def verdict(self, call: ToolCall) -> Verdict:
        """The decision about a call. One of a tool that is not there is judged by its name."""
        claims = self.claims(call)
        found = self.decide(call.tool, claims)
        self._judged[call.call] = Judged(claims, needed_leave=found.effect == "ask")
        self._judged.move_to_end(call.call)
        while len(self._judged) > MAX_JUDGED:
            self._judged.popitem(last=False)
        return found

    def decide(self, tool: str, claims: tuple[Claim, ...]) -> Verdict:
        """The decision about claims of a tool."""
        call = Call(tool=tool, run_mode=self._run_mode, claims=claims, is_confined=self._is_confined)
        return decide(call, self._authorities)

    def claims(self, call: ToolCall) -> tuple[Claim, ...]:
        """What a call claims to do, and where its paths lead."""
        tool = self._tools.get(call.tool)
        facts = _facts(tool, call)
        claims = claims_of(tool.permissions if tool is not None else (), facts, root=self._cwd)
        paths = {
            claim.object
            for claim in claims
            if claim.subject == "path" and claim.object and (self._has_path_rules or not claim.is_mention)
        }
        return with_real_paths(claims, {path: self._real(path) for path in paths})

    def _real(self, path: str) -> str:
        """Where a path leads now, symlinks followed; as it is if that cannot be said."""
        try:
            return normalise_path(os.path.realpath(os.path.join(self._cwd, path)), self._cwd)
        except (OSError, ValueError):
            return path

    # ------------------------------------------------------------ while it runs

    def enter(self, call: ToolCall) -> None:
        """From here on what this task does with files is done for the call."""
        judged = self._judged.pop(call.call, None)
        _UNDER_WAY.set((call.tool, judged) if judged is not None else None)

    def objection(self, location: str, use: Literal["read", "write"]) -> str:
        """Why the call under way may not use a file that really lies at `location`; empty if it may.

        What was judged before the call is not judged again. Anything else, where a symlink leads by now, is.
        """
        under_way = _UNDER_WAY.get()
        if under_way is None:
            return ""
        tool, judged = under_way
        path = normalise_path(location, self._cwd)
        if any(_is_claimed(claim, path, use) for claim in judged.claims):
            return ""
        if self._has_path_rules or use == "write":
            found = self.decide(tool, (Claim(kind=use, subject="path", object=path),))
            if found.effect != "allow" and found.rule.path:
                why = f": {found.reason}" if found.reason else ""
                return f"a rule forbids {tool} where this path leads ({use} {path}){why}"
        has_named_writes = any(claim.kind == "write" and claim.subject == "path" for claim in judged.claims)
        if use == "write" and judged.needed_leave and has_named_writes:
            return f"permission was given for another file: the path leads to {path} by now"
        return ""

    def host_objection(self, host: str) -> str:
        """Why the call under way may not go to a host; empty if it may.

        The host that was judged before the call is not judged again. Another one, where a redirect leads, is; and
        leave that was given for one host is none for another.
        """
        under_way = _UNDER_WAY.get()
        if under_way is None:
            return ""
        tool, judged = under_way
        claim = host_claim(host)
        if any((each.kind, each.subject, each.object) == ("net", "host", claim.object) for each in judged.claims):
            return ""
        found = self.decide(tool, (claim,))
        if found.effect == "allow":
            return ""
        why = f": {found.reason}" if found.reason else ""
        if found.effect == "ask":
            return f"{tool} needs permission for {host}, where a redirect leads{why}; request it by itself"
        return f"a rule forbids {tool} where a redirect leads ({host}){why}"


def _is_claimed(claim: Claim, path: str, use: str) -> bool:
    if claim.kind != use or claim.subject != "path" or claim.is_open or claim.is_mention:
        return False
    is_below = claim.is_tree and (claim.object == "." or path.startswith(claim.object + "/"))
    return claim.object == path or is_below


def _facts(tool: Tool[Any] | None, call: ToolCall) -> Facts | None:
    if tool is None or tool.touches is None:
        return None
    try:
        return tool.touches(decode_arguments(tool, call.arguments))
    except ToolError:
        return None


def own_authorities(spec: AgentSpec, *, cwd: str, private_dirs: tuple[str, ...]) -> tuple[Authority, ...]:
    """Who decides where root has said nothing: the spec's own rules."""
    rules = Authority(name="rules", agent=spec.name, preset=spec.permissions.preset, rules=spec.permissions.rules)
    granted = [normalise_path(path, os.path.realpath(cwd)) for path in spec.isolation.write_paths]
    return (*hard_denies(private_dirs, granted=granted), rules, notes_guard(granted=granted))
