"""Which of the layers that a spec requires this host cannot give: the answer that makes a session fail closed.

It is decided by what was tried (see `probe`), not by what should be there. A layer that the report does not mention
is not given.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ottod.protocol.specs import Isolation

GIVEN_BY: dict[str, tuple[tuple[str, str], ...]] = {
    # layer of the spec: the reports of which one is enough, and what it must begin with.
    "memory": (("memory", "yes"),),
    "files": (("files", "yes"), ("files", "partly"), ("sandbox", "yes")),
    "network": (("network", "yes"),),
    "syscalls": (("syscalls", "yes"),),
}
"""A watchdog looks once a second and no_new_privs filters nothing: both are `partly`, and not what was required."""


class MissingLayer(msgspec.Struct, frozen=True, kw_only=True):
    """A required layer that is not given; `reason` is the report's own, its mend included."""

    name: str
    reason: str


def missing_layers(isolation: Isolation, *, platform_report: Mapping[str, str]) -> list[MissingLayer]:
    """The required layers that are not given. `platform_report` is `probe()`: layer → `yes…`, `partly…` or `no…`."""
    missing = []
    for name, reports in GIVEN_BY.items():
        if getattr(isolation, name) != "required":
            continue
        if any(platform_report.get(layer, "").startswith(word) for layer, word in reports):
            continue
        found = [
            platform_report[layer]
            for layer in dict.fromkeys(layer for layer, _ in reports)
            if layer in platform_report
        ]
        reason = "; ".join(text.removeprefix("no: ").removeprefix("partly: ") for text in found)
        missing.append(MissingLayer(name=name, reason=reason or "it has not been tried yet; try again in a moment"))
    return missing
