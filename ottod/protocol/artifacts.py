"""Artifacts: named, versioned files that the sessions of a tree leave for each other and for people.

An artifact is one version of one name in one tree. Its content is known by its SHA-256, and never changes.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

MAX_ARTIFACT_BYTES = 16 * 1024 * 1024
MAX_PART_BYTES = 256 * 1024
"""Of an artifact's content in one reply to a client."""
MAX_SOURCES = 32
MAX_PLACE_CHARS = 4096
MAX_REASON_CHARS = 2000
MAX_LISTED = 200
"""Artifacts that a session is told of at once."""
KINDS = ("ticket", "prd", "design", "code_diff", "review_report", "test_report", "summary", "file")
"""Kinds that everybody understands; any other word will do as well."""

NAME = re.compile(r"(?!art-)[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
"""A plain file name; it cannot be taken for an id."""
KIND = re.compile(r"[a-z][a-z0-9_-]{0,49}\Z")
DIGEST = re.compile(r"[0-9a-f]{64}\Z")
TOKEN = re.compile(r"[0-9a-f]{32}\Z")
"""The name of a file in which a worker and root hand content to each other."""
ID_PREFIX = "art-"
HANDOVER_DIR = "artifacts"
"""Within a session's directory: where those files are."""


class SinkDelivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an artifact was delivered besides the index, or why not. `sink` is the name of a workflow's sink.

    `place` is a file, a commit or a URL; `attempts` is how often it was tried; `at_ns` is wall clock.
    """

    sink: str
    state: Literal["delivered", "failed"] = "delivered"
    place: str = ""
    reason: str = ""
    attempts: int = 1
    at_ns: int = 0


class ArtifactInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a file. `session` produced it, `sources` are the artifacts that it was made from.

    `digest` is the content's SHA-256 in hex; versions of a name count from 1; `at_ns` is wall clock.
    """

    artifact: str
    name: str
    version: int = 1
    kind: str = "file"
    session: str = ""
    agent: str = ""
    tree: str = ""
    """The topmost session of the tree that it belongs to."""
    digest: str = ""
    size_bytes: int = 0
    sources: tuple[str, ...] = ()
    at_ns: int = 0
    step: str = ""
    """The path of the workflow's step that left it."""
    deliveries: tuple[SinkDelivery, ...] = ()
    """Of the newest word of each sink; told to clients only."""


def name_problem(name: str, kind: str) -> str:
    """What is wrong with an artifact's name or kind; empty if nothing."""
    if not NAME.match(name):
        return f"{name[:120]!r} is no artifact's name: use letters, digits, `.`, `_` and `-`, at most 100"
    if not KIND.match(kind):
        return f"{kind[:60]!r} is no artifact's kind: use lower-case letters, digits, `_` and `-`"
    return ""
