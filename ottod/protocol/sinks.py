"""Sinks: where the artifacts of a workflow go besides Otto's own index.

A sink is one entry in a workflow's file. What it may reach outside of the working directory, hosts and secrets, is
for the user's own configuration to say; what a sink of the user's own is made of travels with the workflow, as it was
when that was started.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from ottod.protocol.specs import Backoff, HttpAccess, Name, PositiveSeconds, Spec
from ottod.protocol.wire import Wire

SinkKind = Literal["filesystem", "git_branch", "sqlite", "webhook", "program"]
MAX_SINKS = 16
MAX_CONTENT_BYTES = 256 * 1024
"""Of an artifact's content that goes with its description, unless a sink says otherwise."""


class Sink(Spec, frozen=True, kw_only=True):
    """One place that artifacts are delivered to, in the order in which steps leave them.

    `path` is for filesystem (a directory) and sqlite (a file), `files` and `on_conflict` for filesystem, `url` and
    `secret` for webhook, `program`, `options` and `secrets` for program, `content_bytes` and `timeout_s` for the last
    two: the others wait for nobody.
    """

    to: SinkKind
    name: Annotated[str, Meta(pattern=r"^[a-z0-9_-]{0,63}$")] = ""
    """What it is called in events and lists: its kind, unless it is given."""
    artifacts: tuple[str, ...] = ()
    """Only these, by name. For git_branch, which takes steps, it has no meaning."""
    kinds: tuple[str, ...] = ()
    """Only artifacts of these kinds."""
    required: bool = False
    """Whether the workflow fails with what could not be delivered."""
    attempts: Annotated[int, Meta(ge=1, le=20)] = 5
    backoff: Backoff = Backoff(base_s=1.0, max_s=30.0)
    timeout_s: PositiveSeconds = 30.0
    """For one attempt."""
    patience_s: PositiveSeconds = 120.0
    """How long the workflow's end may wait for what is left to be delivered."""

    path: str = ""
    files: dict[str, str] = {}
    """Artifact → file, for those that have a place of their own."""
    on_conflict: Literal["fail", "replace"] = "fail"
    """What becomes of a file that somebody else has changed meanwhile, or made."""
    url: str = ""
    secret: str = ""
    """The name of the secret that requests are signed with."""
    content_bytes: Annotated[int, Meta(ge=0, le=16 * 1024 * 1024)] = MAX_CONTENT_BYTES
    program: str = ""
    """A file `NAME.py` among the user's own sinks."""
    options: dict[str, str] = {}
    secrets: tuple[Name, ...] = ()

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.to


class SinkFile(Spec, frozen=True, kw_only=True):
    """A sink of the user's own, as it was when the workflow was started. Never run by a worker."""

    name: str
    path: str
    source: str


class SinkGrants(Wire, frozen=True, kw_only=True):
    """What the sinks of a workflow may reach. `secrets` are values by name; never stored, never logged."""

    access: HttpAccess = HttpAccess()
    secrets: dict[str, str] = {}
    missing: dict[str, str] = {}
    """Secrets that are not there, and why."""
