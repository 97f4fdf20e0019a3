"""The layers around the programs that tools start: files, sandbox, network, system calls, environment.

What they prove is what a tool gets: see `tool_trial`. What the host offers for it: see `tool_probes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ottod.errors import OttoError
from ottod.isolation import tool_probes
from ottod.isolation.layers import LayerReport
from ottod.isolation.tool_trial import attempts

ALLOWED_VARIABLES = frozenset(
    {"PATH", "HOME", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME", "OTTO_SESSION", "OTTO_CALL", "LC_CTYPE", "PWD"}
)
"""What a program finds without its session having listed anything."""
NO_CAPABILITIES = "0" * 16
FILTERING = "2"
"""`Seccomp` in /proc/PID/status while a filter is on."""


Attempt = Callable[[], dict[str, Any]]


class ToolLayer:
    """One layer: `look` is its probe, `attempt` runs the trial, `judge` gives what that found open."""

    def __init__(
        self,
        name: str,
        *,
        look: Callable[[], LayerReport],
        judge: Callable[[dict[str, Any]], list[str]],
        proved: str,
        attempt: Attempt,
    ) -> None:
        self.name = name
        self._attempt = attempt
        self._look = look
        self._judge = judge
        self._proved = proved

    def probe(self) -> LayerReport:
        """See `Layer.probe`."""
        return self._look()

    def prove(self) -> LayerReport:
        """Runs a program as a tool does; a layer that the host does not give at all need not be tried."""
        found = self._look()
        if found.status == "missing":
            return found
        try:
            open_ends = self._judge(self._attempt())
        except OttoError as error:
            open_ends = [error.message]
        if open_ends:
            return LayerReport(name=self.name, status="missing", detail="; ".join(open_ends), mend=found.mend)
        return LayerReport(
            name=self.name, status=found.status, detail=f"{self._proved}: {found.detail}", mend=found.mend
        )


def tool_layers(attempt: Attempt = attempts) -> tuple[ToolLayer, ...]:
    """All layers around tool programs. `attempt` runs the trial program."""

    def layer(
        name: str, look: Callable[[], LayerReport], judge: Callable[[dict[str, Any]], list[str]], proved: str
    ) -> ToolLayer:
        return ToolLayer(name, look=look, judge=judge, proved=proved, attempt=attempt)

    return (
        layer("files", tool_probes.files, _judge_files, "reading and writing outside failed"),
        layer("sandbox", tool_probes.sandbox, _judge_sandbox, "neither the daemon nor control groups were seen"),
        layer("network", tool_probes.network, _judge_network, "a connection to the host failed"),
        layer("syscalls", tool_probes.syscalls, _judge_syscalls, "no privileges, and unshare was refused"),
        layer("environment", tool_probes.environment, _judge_environment, "no variable beyond the list"),
    )


# ---------------------------------------------------------------- what may not have succeeded


def _succeeded(found: dict[str, Any], **phrases: str) -> list[str]:
    return [phrase for name, phrase in phrases.items() if found.get(name) == ""]


def _judge_files(found: dict[str, Any]) -> list[str]:
    open_ends = _succeeded(
        found, write_outside="a file outside could be written", read_outside="a file outside could be read"
    )
    if found.get("write_inside"):
        open_ends.append(f"the project itself cannot be written: {found['write_inside']}")
    return open_ends


def _judge_sandbox(found: dict[str, Any]) -> list[str]:
    return _succeeded(
        found, see_daemon="the daemon's process can be seen", see_cgroups="the control groups can be seen"
    )


def _judge_network(found: dict[str, Any]) -> list[str]:
    return _succeeded(found, connect="a socket on the host could be reached")


def _judge_syscalls(found: dict[str, Any]) -> list[str]:
    open_ends = _succeeded(found, unshare="a user namespace could be made")
    if found.get("NoNewPrivs") != "1":
        open_ends.append("privileges could be gained (no_new_privs is off)")
    if found.get("CapEff") != NO_CAPABILITIES:
        open_ends.append(f"capabilities are left: {found.get('CapEff')}")
    if found.get("Seccomp") != FILTERING:
        open_ends.append("no seccomp filter is on")
    return open_ends


def _judge_environment(found: dict[str, Any]) -> list[str]:
    extra = sorted(set(found.get("variables", ())) - ALLOWED_VARIABLES)
    return [f"variables beyond the list: {', '.join(extra)}"] if extra else []
