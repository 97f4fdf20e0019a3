"""The units say what docs/adr/0011 decided, and the packaged files are what the code writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ottoctl.service_unit import Scope, units

ROOT = Path(__file__).parents[2]
SCOPES: tuple[Scope, ...] = ("user", "system")
MOUNTS = (
    "Private",
    "Protect",
    "ReadOnly",
    "ReadWrite",
    "Inaccessible",
    "Bind",
    "Temporary",
    "Root",
    "Dynamic",
    "Mount",
)
"""Beginnings of the options that give a unit a mount namespace."""


def parsed(text: str) -> dict[str, dict[str, list[str]]]:
    """Sections of a unit; each key with all its values."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("scope", SCOPES)
def test_the_packaged_files_are_in_sync(scope: Scope) -> None:
    """`python -m ottoctl.service_unit packaging/systemd` would change nothing."""
    directory = ROOT / "packaging" / "systemd" / scope
    assert {p.name: p.read_text() for p in directory.iterdir()} == {u.name: u.text for u in units(scope)}


@pytest.mark.parametrize("scope", SCOPES)
def test_units_are_well_formed(scope: Scope) -> None:
    """Every line is a comment, a section or an assignment, nothing is left to fill in, and lines are not endless."""
    for unit in units(scope, ("/opt/o p/ottod",)):
        lines = [line for line in unit.text.replace("\\\n", " ").splitlines() if line]
        assert all(line[0] in "#[" or line.partition("=")[0].isalpha() for line in lines)
        assert "{" not in unit.text and "}" not in unit.text
        assert max(map(len, unit.text.splitlines())) <= 120


@pytest.mark.parametrize("scope", SCOPES)
def test_root_and_its_sessions(scope: Scope) -> None:
    """Root's unit needs the sessions' unit, is ordered after it, shares its slice and tells root its name."""
    root_file, sessions_file = units(scope)
    root, sessions = parsed(root_file.text), parsed(sessions_file.text)
    name = sessions_file.name.replace("@", "@%i")
    for key in ("Requires", "After"):
        assert name in " ".join(root["Unit"][key]).split()
    assert f"OTTO_SESSIONS_UNIT={name}" in root["Service"]["Environment"]
    assert root["Service"]["Slice"] == sessions["Service"]["Slice"]
    assert sessions["Unit"]["StopWhenUnneeded"] == ["yes"] and sessions["Service"]["Delegate"] == ["yes"]
    assert sessions["Service"]["KillMode"] == ["control-group"]
    # Propagated stops also follow a crash: the sessions would end with root.
    assert not {"PropagatesStopTo", "BindsTo", "PartOf"} & (root["Unit"].keys() | sessions["Unit"].keys())


@pytest.mark.parametrize("scope", SCOPES)
def test_what_keeps_root_alive(scope: Scope) -> None:
    """Readiness, watchdog, restarts with a limit that systemd reads, and an OOM kill that stops no unit."""
    root, sessions = (parsed(unit.text) for unit in units(scope))
    service = root["Service"]
    assert service["Type"] == ["notify"] and service["WatchdogSec"] and service["Restart"] == ["on-failure"]
    assert {"StartLimitIntervalSec", "StartLimitBurst"} <= root["Unit"].keys()
    assert not any(key.startswith("StartLimit") for key in service)
    assert service["OOMPolicy"] == sessions["Service"]["OOMPolicy"] == ["continue"]


@pytest.mark.parametrize("scope", SCOPES)
def test_hardening_that_sessions_survive(scope: Scope) -> None:
    """Nothing gives root a mount namespace of its own, and nothing takes from bubblewrap what it needs."""
    for unit in units(scope):
        keys = set(parsed(unit.text)["Service"])
        assert not {key for key in keys if key.startswith(MOUNTS)}
        assert not {"RestrictNamespaces", "SystemCallFilter", "MemoryDenyWriteExecute"} & keys
    assert parsed(units(scope)[0].text)["Service"]["NoNewPrivileges"] == ["yes"]
