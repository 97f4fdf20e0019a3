"""Which layers of isolation would stop a claim as well, whatever the rules say of it. It knows, and does not try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ottod.core import pattern
from ottod.core.claims import Claim
from ottod.core.permission import PROTECTED_PATHS
from ottod.protocol.results import LayerWord
from ottod.protocol.specs import Isolation


def other_layers(
    claims: Sequence[Claim], *, isolation: Isolation, given: Mapping[str, str], is_program: bool
) -> tuple[LayerWord, ...]:
    """The layers that a call meets besides the rules.

    `given`: layer → `yes…`, `partly…`, `no…`, as `ottoctl doctor` has it. `is_program`: the call starts programs.
    """
    found: list[LayerWord] = []
    for claim in claims:
        if claim.subject == "path" and not claim.is_open and not claim.is_mention:
            found += _about_path(claim, isolation, given, is_program=is_program)
        elif claim.kind == "net" and is_program and not claim.is_mention and _has_own_network(isolation, given):
            found.append(LayerWord(layer="network", claim=str(claim), why="programs have a network of their own"))
    if is_program and any(claim.kind == "exec" for claim in claims):
        found += _bounds(isolation, given)
    return tuple(dict.fromkeys(found))


def _bounds(isolation: Isolation, given: Mapping[str, str]) -> list[LayerWord]:
    """What no program can do, whichever it is and whatever its words mean."""
    found = []
    if isolation.files != "off" and _gives(given, "files", "sandbox"):
        claim = "write outside the working directory"
        why = "no program writes there, except where it is granted"
        found.append(LayerWord(layer="files", claim=claim, why=why, is_bound=True))
    if _has_own_network(isolation, given):
        why = "programs have a network of their own"
        found.append(LayerWord(layer="network", claim="net any host", why=why, is_bound=True))
    return found


def _about_path(claim: Claim, isolation: Isolation, given: Mapping[str, str], *, is_program: bool) -> list[LayerWord]:
    found = []
    is_outside = claim.object.startswith("/")
    if claim.kind == "write" and any(pattern.path_matches(p, claim.object.casefold()) for p in PROTECTED_PATHS):
        how = "it is mounted read-only for programs" if is_program else "file tools refuse it, wherever symlinks lead"
        if not is_program or _gives(given, "sandbox"):
            found.append(LayerWord(layer="protected paths", claim=str(claim), why=how))
    if is_outside and not is_program:
        found.append(
            LayerWord(layer="beneath", claim=str(claim), why="file tools resolve paths below the working directory")
        )
    granted = isolation.write_paths if claim.kind == "write" else (*isolation.read_paths, *isolation.write_paths)
    is_granted = any(pattern.path_matches(path, claim.object) for path in granted)
    is_held = isolation.files != "off" and _gives(given, "files", "sandbox")
    if is_outside and is_program and is_held and not is_granted:
        why = "programs write the working directory and what is granted, and read the system besides"
        found.append(LayerWord(layer="files", claim=str(claim), why=why))
    return found


def _has_own_network(isolation: Isolation, given: Mapping[str, str]) -> bool:
    return isolation.network != "off" and _gives(given, "network")


def _gives(given: Mapping[str, str], *layers: str) -> bool:
    return any(given.get(layer, "").startswith(("yes", "partly")) for layer in layers)
