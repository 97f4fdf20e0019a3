"""Makes the sinks of a workflow, each with what it may reach and nothing else.

Files lie in the working directory, and rules that forbid a path forbid it here: nobody is asked, so what would have
to be asked about by a rule of its own is denied. The web is what otto.yml grants to sinks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ottod.core.claims import Claim, host_claim
from ottod.core.pattern import normalise_path
from ottod.core.permission import Call, decide
from ottod.isolation.beneath import BeneathFiles
from ottod.isolation.web import PinnedWeb
from ottod.protocol.birth import Birth
from ottod.protocol.sinks import Sink, SinkGrants
from ottod.protocol.toolio import Programs
from ottod.protocol.workflows import ResolvedWorkflow, Step, WorkflowSpec, sinks_of
from ottod.sinks.base import Destination
from ottod.sinks.filesystem import Filesystem
from ottod.sinks.git_branch import GitBranch
from ottod.sinks.program import OwnProgram
from ottod.sinks.sqlite import SqliteFile
from ottod.sinks.webhook import Webhook
from ottod.worker.artifacts import Artifacts
from ottod.worker.judge import own_authorities
from ottod.worker.workflow_diff import WorkingTree

ACTOR = "sink"
"""What rules call whoever delivers, in the place of a tool."""


class SinkRoom:
    """What the sinks of one workflow stand in. Must be closed."""

    def __init__(
        self, birth: Birth, workflow: ResolvedWorkflow, *, programs: Programs, tree: WorkingTree, artifacts: Artifacts
    ) -> None:
        self._birth = birth
        self._workflow = workflow
        self._programs = programs
        self._tree = tree
        self._artifacts = artifacts
        self._authorities = birth.authorities or own_authorities(
            birth.spec, cwd=birth.cwd, private_dirs=birth.private_dirs
        )
        self._files: BeneathFiles | None = None

    def destinations(self) -> dict[str, Destination]:
        """The workflow's sinks by name. Raises ToolError if the working directory cannot be opened."""
        return {sink.label: self._made(sink) for sink in sinks_of(self._workflow.spec)}

    def close(self) -> None:
        if self._files is not None:
            self._files.close()

    def _made(self, sink: Sink) -> Destination:
        grants: SinkGrants = self._birth.sinks
        match sink.to:
            case "filesystem":
                return Filesystem(sink, self._opened(), delivered_to=self._artifacts.delivered_to)
            case "sqlite":
                return SqliteFile(sink, self._opened().place)
            case "git_branch":
                return GitBranch(self._tree.git, graft=self._tree.graft)
            case "webhook":
                return Webhook(sink, PinnedWeb(grants.access, objection=self._host_objection), grants)
            case "program":
                file = next(each for each in self._workflow.sink_files if each.name == sink.program)
                return OwnProgram(sink, file, self._programs, grants)

    def _opened(self) -> BeneathFiles:
        if self._files is None:
            birth = self._birth
            self._files = BeneathFiles(
                birth.cwd, hidden=birth.private_dirs, durable=True, objection=self._path_objection
            )
        return self._files

    def _path_objection(self, location: str, use: Literal["read", "write"]) -> str:
        path = normalise_path(location, self._files.root if self._files is not None else self._birth.cwd)
        return self._objection(Claim(kind=use, subject="path", object=path))

    def _host_objection(self, host: str) -> str:
        return self._objection(host_claim(host))

    def _objection(self, claim: Claim) -> str:
        call = Call(tool=ACTOR, run_mode=self._birth.run_mode, claims=(claim,), is_confined=True)
        found = decide(call, self._authorities)
        if found.effect == "deny" or (found.effect == "ask" and (found.rule.path or found.rule.host)):
            why = f": {found.reason}" if found.reason else ""
            return f"a rule forbids sinks to {claim}{why}"
        return ""


def artifact_kinds(spec: WorkflowSpec) -> Mapping[str, str]:
    """The kind of each artifact that a step leaves, by name."""
    kinds: dict[str, str] = {}
    waiting: list[Step] = list(spec.steps)
    while waiting:
        step = waiting.pop()
        waiting += step.steps
        kinds |= {output.name: output.kind for output in step.outputs}
    return kinds
