"""Definitions as sessions were started with them: kept by digest, as long as a session refers to them.

A definition is meant by its name, or as `NAME@DIGEST`: what it said when it had that digest, of which the first
characters are enough.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from ottod.errors import ConfigError

DefinitionKind = Literal["agent", "workflow"]
MIN_DIGEST_CHARS = 4
"""Of a digest's beginning; fewer would sooner or later mean another one."""
SHOWN_DIGEST_CHARS = 12
_DIGEST = re.compile(rf"[0-9a-f]{{{MIN_DIGEST_CHARS},64}}\Z")


class KeptDefinition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of an agent or a workflow. `source` is where it was first read, `first_at_ns` when it first ran.

    `sessions` refer to it, `live` of them have not ended.
    """

    kind: DefinitionKind
    name: str
    digest: str
    source: str = ""
    first_at_ns: int = 0
    sessions: int = 0
    live: int = 0


def name_and_digest(wanted: str) -> tuple[str, str]:
    """`NAME@DIGEST` as its parts; without a digest the second is empty. Raises ConfigError for what is no digest."""
    name, is_version, digest = wanted.partition("@")
    digest = digest.strip().lower()
    if is_version and not _DIGEST.match(digest):
        raise ConfigError(
            f"{digest[:100]!r} is not the beginning of a digest",
            mend=f"{MIN_DIGEST_CHARS} to 64 of 0-9 and a-f: see `ottoctl agent show {name[:64]} --versions`",
        )
    return name, digest
