"""Parcels for tests of sinks."""

from __future__ import annotations

import hashlib

from ottod.protocol.artifacts import ArtifactInfo
from ottod.sinks.base import Parcel


def parcel(data: bytes = b"content", *, name: str = "design", version: int = 1, tree: str = "") -> Parcel:
    """One artifact of a step."""
    info = ArtifactInfo(
        artifact=f"art-{hashlib.sha256(f'{name}{version}'.encode() + data).hexdigest()[:10]}",
        name=name,
        version=version,
        kind="design",
        session="s-0123456789",
        agent="planner",
        digest=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        sources=("art-0000000000",),
        at_ns=1_700_000_000_000_000_000,
    )
    return Parcel(
        key=f"sink/{info.artifact}@{version}",
        workflow="fix",
        session="s-7777777777",
        path="build[1]/coder",
        attempt=1,
        at_ns=1_700_000_000_000_000_000,
        artifacts=(info,),
        data=data,
        tree=tree,
    )
