from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ottod.isolation import tool_layers
from ottod.isolation.caps import Caps, Enclosure, Reading
from ottod.isolation.enclosure import Enclosures
from ottod.isolation.figures import read_marker
from ottod.isolation.layers import LayerReport, run_trial
from ottod.isolation.memory_layer import MemoryLayer
from ottod.isolation.probe import host_layers, probe
from ottod.isolation.process_layer import ProcessLayer
from ottod.isolation.processes import read_table
from ottod.isolation.watchdog import WatchdogEnclosure
from tests.daemon.harness import wait_for

NAMES = ["process", "memory", "files", "sandbox", "network", "syscalls", "environment"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process and no directory of a trial outlives it."""
    before = {row.id for row in read_table().values()}
    yield

    def left() -> list[object]:
        # Parallel tests have trials of their own: only what is ours or has come to init counts, and stays.
        new = [row for row in read_table().values() if row.id not in before and row.parent_pid in (os.getpid(), 1)]
        return [row for row in new if read_marker(row.id.pid).startswith("trial-")]

    wait_for("nothing is left", lambda: not left())


def test_the_probe_answers_for_every_layer() -> None:
    """Each layer has a one-line answer, and what is not there comes with a mend."""
    found = probe()
    assert list(found) == NAMES
    for name, text in found.items():
        assert text.startswith(("yes: ", "partly: ", "no: ")), (name, text)
        assert "\n" not in text
        assert text.startswith("yes") or "; " in text, (name, text)


def test_every_layer_reports_under_its_name() -> None:
    """The name in the table is the name in the report."""
    for layer in host_layers(Enclosures(None, reason="this is a test")):
        report = layer.probe()
        assert report.name == layer.name
        assert report.status == "given" or report.mend, report


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("given", "yes: what is; more"),
        ("partly", "partly: what is; more; do this"),
        ("missing", "no: what is; more; do this"),
    ],
)
def test_a_report_is_one_line(status: str, text: str) -> None:
    """Word, detail, and the mend where there is something to mend; line breaks of a trial's output are gone."""
    report = LayerReport(name="x", status=status, detail="what is; more", mend="do\n this")  # type: ignore[arg-type]
    assert str(report) == text
    assert str(LayerReport(name="x", status="given")) == "yes"


def test_the_memory_layer_is_proved_by_breaking_it() -> None:
    """A tree over the cap and a fork bomb are caught and ended, nobody else is, and nothing is left."""
    report = MemoryLayer(Enclosures(None, reason="this is a test")).prove()
    assert report.status == "partly", report
    assert "were ended, and nothing else" in report.detail and "this is a test" in report.detail


class Blind(WatchdogEnclosure):
    """An enclosure that sees nothing."""

    def read(self) -> Reading:
        return Reading()


class BlindEnclosures(Enclosures):
    def open(self, session: str, caps: Caps) -> Enclosure:
        return Blind(self._watch, session=session, caps=caps)


def test_a_cap_that_does_not_hold_is_reported() -> None:
    """If nobody notices the breach, the layer is missing, and the hog is ended nevertheless."""
    report = MemoryLayer(BlindEnclosures(None, reason="this is a test"), timeout_s=1.0).prove()
    assert report.status == "missing" and report.detail.startswith("memory: the cap did not hold")


def test_the_process_layer_is_proved_by_breaking_it() -> None:
    """A crash ends one process, and one that hides is found."""
    assert ProcessLayer().prove().status == "given"


def test_a_trial_that_hangs_or_cannot_start_says_so() -> None:
    """Why a trial failed fits in a line."""
    assert run_trial(["/bin/true"]) == ""
    assert run_trial(["/bin/sh", "-c", "echo one >&2; echo two >&2; exit 3"]) == "two"
    assert run_trial(["/bin/sh", "-c", "exit 3"]) == "exit status 3"
    assert run_trial(["/bin/sleep", "600"], timeout_s=0.2) == "no answer within 0 s"
    assert run_trial(["/no/such/program"]) == "No such file or directory"


ATTEMPTS = {
    "variables": ["PATH", "OTTO_SESSION"],
    "write_outside": "Permission denied",
    "read_outside": "Permission denied",
    "write_inside": "",
    "connect": "Network is unreachable",
    "see_daemon": "No such file or directory",
    "see_cgroups": "No such file or directory",
    "unshare": "Operation not permitted",
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "CapEff": "0000000000000000",
}


@pytest.mark.parametrize(
    ("layer", "change", "complaint"),
    [
        ("files", {"write_outside": ""}, "written"),
        ("files", {"read_outside": ""}, "read"),
        ("files", {"write_inside": "Permission denied"}, "project itself"),
        ("sandbox", {"see_daemon": ""}, "daemon"),
        ("sandbox", {"see_cgroups": ""}, "control groups"),
        ("network", {"connect": ""}, "socket"),
        ("syscalls", {"unshare": ""}, "namespace"),
        ("syscalls", {"NoNewPrivs": "0"}, "no_new_privs"),
        ("syscalls", {"Seccomp": "0"}, "seccomp"),
        ("syscalls", {"CapEff": "000001ffffffffff"}, "capabilities"),
        ("environment", {"variables": ["PATH", "ANTHROPIC_API_KEY"]}, "ANTHROPIC_API_KEY"),
    ],
)
def test_every_breach_is_one_layers_business(layer: str, change: dict[str, object], complaint: str) -> None:
    """What the trial program could do fails the layer that should have kept it from that, and no other."""
    for each in tool_layers.tool_layers(lambda: {**ATTEMPTS, **change}):
        if each.probe().status == "missing":
            continue
        report = each.prove()
        if each.name == layer:
            assert report.status == "missing" and complaint in report.detail
        else:
            assert report.status != "missing", report


def test_the_trial_program_tries_everything() -> None:
    """A real run of it, confined as a tool: every attempt that the layers judge has an answer."""
    from ottod.isolation.tool_trial import attempts

    found = attempts()
    assert found.keys() >= ATTEMPTS.keys()
    assert found["write_inside"] == ""
    assert not set(found["variables"]) - tool_layers.ALLOWED_VARIABLES
