"""What an agent's answer may follow from besides what it is asked, as one digest: another one once any of it changes.

The files of the working directory and the project's notes, and, of an agent that has the tools to look at them, the
artifacts of its tree and the decision graph of its project.
"""

from __future__ import annotations

from hashlib import sha256

from ottod.isolation.project_notes import find_notes
from ottod.protocol.specs import AgentSpec
from ottod.root.artifacts import Artifacts
from ottod.root.context import RootContext
from ottod.root.decisions import Decisions
from ottod.root.session_table import Session
from ottod.root.tree_state import tree_state

ARTIFACT_READERS = frozenset({"artifact_read", "artifact_list"})
DECISION_READER = "decision_query"


class Surroundings:
    """Of all sessions."""

    def __init__(self, context: RootContext, artifacts: Artifacts, decisions: Decisions) -> None:
        self._c = context
        self._artifacts = artifacts
        self._decisions = decisions

    async def state(self, spec: AgentSpec, cwd: str, session: Session) -> str:
        """What this agent would find in this directory, in the tree of this session; empty if that cannot be said.

        Raises StorageError.
        """
        files = await self._c.in_thread(_files, spec, cwd)
        if not files:
            return ""
        seen = [files]
        if ARTIFACT_READERS & set(spec.tools):
            seen.append(await self._artifacts.state(session))
        if DECISION_READER in spec.tools:
            seen.append(await self._decisions.state(cwd))
        return sha256("\n".join(seen).encode()).hexdigest()


def _files(spec: AgentSpec, cwd: str) -> str:
    """On a thread. The notes can lie above the directory."""
    state = tree_state(cwd)
    if not state or not spec.project_notes:
        return state
    notes = find_notes(cwd)
    return f"{state} {notes.path} {sha256(notes.text.encode('utf-8', 'replace')).hexdigest()}" if notes else state
