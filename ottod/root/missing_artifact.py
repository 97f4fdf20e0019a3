"""What is said to whoever asks for an artifact that there is not: where it is, or which one was probably meant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from ottod.errors import RefusedError
from ottod.protocol.artifacts import ID_PREFIX, ArtifactInfo
from ottod.settings.nearest import nearest
from ottod.settings.units import plural
from ottod.storage.artifact_index import ArtifactIndex

MAX_COMPARED = 1000
"""Artifacts, the newest first, whose names are compared with the one that was asked for."""
MAX_TREES_NAMED = 3


async def missing_artifact(
    index: ArtifactIndex,
    reference: str,
    *,
    tree: str,
    version: int,
    in_thread: Callable[..., Awaitable[ArtifactInfo | None]],
) -> RefusedError:
    """The refusal of a reference that `index` does not find, in `tree` or, without one, at all.

    Long names take a while to compare: that is done `in_thread`.
    """
    name = reference if reference.startswith(ID_PREFIX) else reference.partition("@")[0]
    which = f"{reference}@{version}" if version else reference
    if tree and (elsewhere := await index.find(reference, tree="", version=version)):
        return _elsewhere(which, tree, elsewhere)
    if any_version := await index.find(name, tree=tree):
        return _no_such_version(which, any_version[0])
    known = await index.select(tree=tree, limit=MAX_COMPARED)
    if near := await in_thread(_nearest, name, known):
        return _refusal(f"there is no artifact {which}", f"did you mean {near.name!r}? {_show(near)}")
    if tree and (near := await in_thread(_nearest, name, await index.select(limit=MAX_COMPARED))):
        what = f"did you mean {near.name!r} of another one, {near.tree}? {_show(near)}"
        return _refusal(f"the tree of {tree} has no artifact {which}", what)
    where = f" --session {tree}" if tree and known else ""
    return _refusal(f"there is no artifact {which}", f"see `ottoctl artifact list{where}`")


def _elsewhere(which: str, tree: str, found: Iterable[ArtifactInfo]) -> RefusedError:
    others = list({info.tree: info for info in found}.values())
    named = " and ".join(info.tree for info in others[:MAX_TREES_NAMED])
    named += " and others" if len(others) > MAX_TREES_NAMED else ""
    have = "have" if len(others) > 1 else "has"
    return _refusal(f"the tree of {tree} has no artifact {which}; {named} {have} one", _show(others[0]))


def _no_such_version(which: str, newest: ArtifactInfo) -> RefusedError:
    has = f"of {newest.name} there {'is' if newest.version == 1 else 'are'} {plural(newest.version, 'version')}"
    return _refusal(f"there is no artifact {which}: {has}", f"`ottoctl artifact show {newest.name}@{newest.version}`")


def _nearest(name: str, known: Iterable[ArtifactInfo]) -> ArtifactInfo | None:
    by_name = {info.name: info for info in reversed(list(known))}
    return by_name.get(nearest(name, by_name))


def _show(info: ArtifactInfo) -> str:
    return f"`ottoctl artifact show {info.name} --session {info.tree}`"


def _refusal(message: str, mend: str) -> RefusedError:
    return RefusedError(message, code="no_such_artifact", mend=mend)
