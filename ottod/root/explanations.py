"""Explains what would become of a tool call. The tools are known to another process, which is asked each time."""

from __future__ import annotations

import os
import subprocess

import msgspec

from ottod.errors import UNDECODABLE, OttoError, RefusedError
from ottod.protocol.policy import Authority, Hypothesis, StandingGrant
from ottod.protocol.requests import ExplainPolicy, StartSession
from ottod.protocol.results import PolicyExplanation
from ottod.protocol.specs import AgentSpec
from ottod.root.context import RootContext
from ottod.root.reaper import Reaper
from ottod.root.resolve import Resolver
from ottod.root.rulings import all_authorities
from ottod.root.session_table import Session
from ottod.settings.interpreter import program
from ottod.settings.nearest import nearest
from ottod.settings.tool_names import PROJECT, USER, source_of

PROGRAM = "ottod.worker.explain"
TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024


class Explanations:
    """Of this root."""

    def __init__(
        self, context: RootContext, *, resolver: Resolver, reaper: Reaper, private_dirs: tuple[str, ...]
    ) -> None:
        self._c = context
        self._resolver = resolver
        self._reaper = reaper
        self._private_dirs = private_dirs

    async def explain(
        self, body: ExplainPolicy, session: Session | None, grants: tuple[StandingGrant, ...]
    ) -> PolicyExplanation:
        """What would become of the call. Raises: OttoError for an agent that cannot be resolved."""
        return await self._c.in_thread(self._explain, body, session, grants)

    def _explain(
        self, body: ExplainPolicy, session: Session | None, grants: tuple[StandingGrant, ...]
    ) -> PolicyExplanation:
        inherited: tuple[Authority, ...] = ()
        run_mode = body.run_mode
        if session is not None:
            if session.plan is None:
                raise RefusedError(f"{session.id} has ended", code="session_ended", mend="name an agent instead")
            spec, cwd, inherited = session.plan.spec, session.plan.cwd, session.plan.inherited
            run_mode = "headless" if session.info.run_mode == "headless" else run_mode
        else:
            request = StartSession(agent=body.agent, spec=body.spec, cwd=body.cwd)
            spec, cwd = self._resolver.look_up(request)
            grants = tuple(each for each in grants if (each.source, each.cwd) == (spec.source, cwd))
        check_tool(body.tool, spec, self._resolver.tools_at(cwd))
        report = self._resolver.layers()
        return _ask(
            self._reaper,
            Hypothesis(
                spec=spec,
                authorities=all_authorities(
                    spec,
                    self._c.settings.permissions,
                    cwd=cwd,
                    private_dirs=self._private_dirs,
                    inherited=inherited,
                ),
                grants=grants,
                tool=body.tool,
                arguments=body.arguments,
                cwd=cwd,
                run_mode=run_mode,
                is_confined=_are_confined(spec, report),
                isolation=report,
            ),
        )


def check_tool(tool: str, spec: AgentSpec, known: tuple[str, ...]) -> None:
    """Raises OttoError `unknown_tool` for a name that no tool here bears. What MCP servers offer is not known."""
    if tool in known or tool in spec.tools or source_of(tool) not in ("", PROJECT, USER):
        return
    close = nearest(tool, spec.tools) or nearest(tool, known)
    hint = f" — did you mean {close!r}?" if close else ""
    mend = f"{spec.name} has: {', '.join(spec.tools) or 'no tools'}"
    raise OttoError(f"unknown tool {tool[:100]!r}{hint}", mend=mend, code="unknown_tool")


def _are_confined(spec: AgentSpec, report: dict[str, str]) -> bool:
    given = [report.get(layer, "") for layer in ("files", "sandbox")]
    return spec.isolation.files != "off" and any(text.startswith(("yes", "partly")) for text in given)


def _ask(reaper: Reaper, order: Hypothesis) -> PolicyExplanation:
    try:
        done = reaper.run(
            program(PROGRAM),
            input=msgspec.json.encode(order),
            timeout_s=TIMEOUT_S,
            env={"PATH": os.defpath},
        )
        if done.returncode == 0 and len(done.stdout) <= MAX_ANSWER_BYTES:
            return msgspec.json.decode(done.stdout, type=PolicyExplanation)
    except (OSError, subprocess.TimeoutExpired, *UNDECODABLE) as error:
        raise OttoError(f"the explanation failed: {error}"[:500], code="internal") from error
    said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
    raise OttoError(f"the explanation failed: {said[-1]}"[:500], code="internal", mend="see the daemon's log")
