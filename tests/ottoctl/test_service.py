"""`ottoctl service`: what it writes, what it asks systemd for, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ottoctl.service import Service, service_command, span_s, user_units
from ottoctl.service_unit import MARK, PACKAGED_COMMAND, exec_command, units
from ottod.errors import OttoError, RefusedError
from tests.fakes.fake_systemctl import FakeSystemctl

ROOT = Path(__file__).parents[2]
UNITS = ("ottod.service", "otto-sessions.service")
DEADLINE_S = 60.0


@pytest.fixture
def systemctl(tmp_path: Path) -> FakeSystemctl:
    return FakeSystemctl(tmp_path)


def user_service(systemctl: FakeSystemctl, *packaged: Path) -> Service:
    return Service("user", env=systemctl.environment(), uid=1000, packaged_units=packaged)


def place(systemctl: FakeSystemctl) -> Path:
    return user_units(systemctl.environment())


def ottoctl(systemctl: FakeSystemctl, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """A real command that meets the fake."""
    directories = {"OTTO_RUNTIME_DIR": str(systemctl.home / "run"), "OTTO_STATE_DIR": str(systemctl.home / "state")}
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", "service", *arguments],
        env=systemctl.environment({"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **directories, **extra}),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_install_writes_the_units_and_starts_nothing(systemctl: FakeSystemctl) -> None:
    """Both units are written, marked, for this installation; systemd reads them; nothing is enabled or started."""
    written, removed = user_service(systemctl).install(("/opt/otto/bin/ottod",))
    assert not removed and written == [place(systemctl) / name for name in UNITS]
    for path in written:
        assert path.read_text().startswith(MARK) and path.stat().st_mode & 0o777 == 0o644
    assert "\nExecStart=/opt/otto/bin/ottod run\n" in written[0].read_text()
    assert systemctl.calls == ["show --property=Version --value", "daemon-reload"]


def test_install_again_changes_what_is_different(systemctl: FakeSystemctl) -> None:
    """The same installation changes nothing, another one its own line."""
    service = user_service(systemctl)
    service.install(("/opt/a/bin/ottod",))
    assert service.install(("/opt/a/bin/ottod",)) == ([], [])
    assert service.install(("/opt/b/bin/ottod",)) == ([place(systemctl) / "ottod.service"], [])
    assert not list(place(systemctl).glob(".*")), "a temporary file was left"


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("how", ["file", "mask"])
def test_a_unit_of_somebody_else_is_left_alone(systemctl: FakeSystemctl, name: str, how: str) -> None:
    """A file without the mark, or a masked unit, stops the installation before anything is written."""
    path = place(systemctl) / name
    path.parent.mkdir(parents=True)
    if how == "mask":
        path.symlink_to("/dev/null")
    else:
        path.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(RefusedError, match=f"{name} was not written by ottoctl"):
        user_service(systemctl).install(("/opt/otto/bin/ottod",))
    assert [p.name for p in path.parent.iterdir()] == [name] and "daemon-reload" not in systemctl.calls
    assert user_service(systemctl).uninstall() == []
    assert path.is_symlink() if how == "mask" else path.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_units_of_a_package_are_used(systemctl: FakeSystemctl, tmp_path: Path) -> None:
    """A packaged daemon writes no units if the package's are there, and takes away those that would hide them."""
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    for unit in units("user"):
        (packaged / unit.name).write_text(unit.text)
    service = user_service(systemctl, tmp_path / "absent", packaged)
    assert service.install(PACKAGED_COMMAND) == ([], [])
    assert not place(systemctl).exists()
    written = service.install(("/opt/otto/bin/ottod",)).written
    assert len(written) == 2, "another installation's daemon gets units of its own"
    assert service.install(PACKAGED_COMMAND) == ([], written) and systemctl.calls[-1] == "daemon-reload"
    assert not any(path.exists() for path in written)


def test_uninstall_stops_before_it_removes(systemctl: FakeSystemctl) -> None:
    """Root is disabled and stopped, then its sessions; then the files go, and systemd forgets them."""
    service = user_service(systemctl)
    written = service.install(("/opt/otto/bin/ottod",)).written
    systemctl.unit("ottod.service")
    before = len(systemctl.calls)
    assert service.uninstall() == written and not any(path.exists() for path in written)
    assert systemctl.calls[before:] == [
        "show --property=Version --value",
        "show ottod.service --property=LoadState",
        "disable --now ottod.service",
        "stop otto-sessions.service",
        "reset-failed ottod.service otto-sessions.service",
        "daemon-reload",
    ]


def test_what_cannot_be_stopped_is_not_removed(systemctl: FakeSystemctl) -> None:
    """If systemd refuses, the units stay, the error carries its words, and names the log."""
    service = user_service(systemctl)
    written = service.install(("/opt/otto/bin/ottod",)).written
    systemctl.unit("ottod.service")
    systemctl.fail("disable *")
    with pytest.raises(OttoError, match=r"disable --now ottod.service` failed: Job failed.") as caught:
        service.uninstall()
    assert "--user-unit=ottod.service" in caught.value.mend
    assert all(path.exists() for path in written)


def test_the_systems_service(systemctl: FakeSystemctl, tmp_path: Path) -> None:
    """Templates with the user's uid for an instance; uninstall ends every instance, running or only enabled."""
    service = Service(
        "system", env=systemctl.environment(), uid=0, account="1000", system_units=tmp_path / "etc", packaged_units=()
    )
    written = service.install(("/opt/otto/bin/ottod",)).written
    assert [path.name for path in written] == ["ottod@.service", "otto-sessions@.service"]
    service.enable_now()
    assert systemctl.calls[-1] == "enable --now ottod@1000.service"
    systemctl.listed("ottod@1000.service loaded active running Otto\nottod@.service disabled enabled\n")
    wants = tmp_path / "etc" / "multi-user.target.wants"
    wants.mkdir()
    (wants / "ottod@1001.service").symlink_to(written[0])
    for name in ("1000", "1001"):
        systemctl.unit(f"ottod@{name}.service")
    service.uninstall()
    assert [c for c in systemctl.calls if c.startswith(("disable", "stop"))] == [
        "disable --now ottod@1000.service",
        "stop otto-sessions@1000.service",
        "disable --now ottod@1001.service",
        "stop otto-sessions@1001.service",
    ]


def test_the_systems_service_needs_root(systemctl: FakeSystemctl, tmp_path: Path) -> None:
    """Nobody else is let as far as to write a file."""
    service = Service("system", env=systemctl.environment(), uid=1000, account="1000", system_units=tmp_path / "etc")
    for action in (lambda: service.install(PACKAGED_COMMAND), service.uninstall):
        with pytest.raises(RefusedError, match="needs root"):
            action()
    assert not (tmp_path / "etc").exists() and systemctl.calls == []


def test_status_reads_systemd(systemctl: FakeSystemctl) -> None:
    """The facts are systemd's, in JSON with numbers and in text as a page; an active service is status 0."""
    started_us = int((time.monotonic() - 30) * 1e6)
    systemctl.unit(
        "ottod.service", FragmentPath="/usr/lib/systemd/user/ottod.service", UnitFileState="enabled",
        ActiveState="active", SubState="running", Result="success", MainPID=4711, NRestarts=2, WatchdogUSec="20s",
        ActiveEnterTimestampMonotonic=max(started_us, 1), StatusText="sessions: 2 running",
    )  # fmt: skip
    systemctl.unit("otto-sessions.service", ActiveState="active", TasksCurrent=9, MemoryCurrent=1048576)
    done = ottoctl(systemctl, "status", "-o", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["installed"], found["enabled"], found["active"], found["main_pid"]) == (
        True,
        "enabled",
        "active",
        4711,
    )
    assert (found["restarts"], found["watchdog_s"], found["from"]) == (2, 20.0, "package")
    assert found["status"] == "sessions: 2 running" and found["active_for_s"] > 0 and found["active_since"]
    assert (found["sessions_unit"], found["sessions_active"]) == ("otto-sessions.service", "active")
    assert (found["sessions_tasks"], found["sessions_memory_bytes"]) == (9, 1048576)
    page = ottoctl(systemctl, "status")
    assert "4711" in page.stdout and "sessions: 2 running" in page.stdout and page.returncode == 0


def test_status_of_what_is_not_there(systemctl: FakeSystemctl) -> None:
    """A service that is not installed is told as that, with status 3; what systemd does not know is null."""
    systemctl.unit("otto-sessions.service", ActiveState="inactive", TasksCurrent="[not set]", MemoryCurrent=2**64 - 1)
    done = ottoctl(systemctl, "status", "-o", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 3 and not found["installed"] and found["active_for_s"] is None
    assert found["sessions_tasks"] is None and found["sessions_memory_bytes"] is None and found["watchdog_s"] is None
    assert "no" in ottoctl(systemctl, "status").stdout


@pytest.mark.parametrize("verb", ["install", "uninstall", "status"])
def test_without_systemd(systemctl: FakeSystemctl, verb: str) -> None:
    """Without systemctl, and where it finds no manager, the error says so and how to do without."""
    systemctl.fail("show *")
    done = ottoctl(systemctl, verb)
    assert done.returncode == 5 and "this user's systemd does not answer: Job failed." in done.stderr
    assert "log in as this user" in done.stderr
    done = ottoctl(systemctl, verb, PATH=str(systemctl.home))
    assert done.returncode == 5 and "this machine has no systemd" in done.stderr
    assert "`ottoctl daemon start`" in done.stderr and not place(systemctl).exists()


def test_a_container_without_systemd(tmp_path: Path) -> None:
    """A systemctl that says that nothing was booted with systemd is no systemd."""
    systemctl = FakeSystemctl(tmp_path, words="System has not been booted with systemd as init system (PID 1).")
    systemctl.fail("*")
    done = ottoctl(systemctl, "status")
    assert done.returncode == 5 and "systemd does not answer: System has not been booted" in done.stderr
    assert "log in as" not in done.stderr


def test_the_command_line(systemctl: FakeSystemctl) -> None:
    """Install with --now enables and starts; directories that the service would not use are pointed out."""
    done = ottoctl(systemctl, "install", "--now")
    assert done.returncode == 0, done.stderr
    assert systemctl.calls[-1] == "enable --now ottod.service"
    assert done.stdout == "" and "wrote " in done.stderr and "OTTO_STATE_DIR" in done.stderr
    done = ottoctl(systemctl, "uninstall")
    assert done.returncode == 0 and done.stderr.count("removed ") == 2
    assert ottoctl(systemctl, "status", "--account", "root").returncode == 2
    assert "there is no user" in ottoctl(systemctl, "status", "--system", "--account", "no-such-user-here").stderr


def test_the_command_is_this_installations() -> None:
    """The unit starts a program by its whole path, and nothing that the working directory could replace."""
    command = service_command()
    assert Path(command[0]).is_absolute() and Path(command[0]).exists()
    assert len(command) == 1 or command[1:] == ("-P", "-m", "ottod")


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/usr/bin/ottod", "/usr/bin/ottod"),
        ("/home/a b/ottod", '"/home/a b/ottod"'),
        ("/50%/$HOME/ottod", "/50%%/$$HOME/ottod"),
        ('/a"b/c\\d', '"/a\\"b/c\\\\d"'),
        ("/a;b", '"/a;b"'),
        ("", '""'),
    ],
)
def test_what_systemd_would_expand_is_quoted(word: str, written: str) -> None:
    """A path with spaces, percent or dollar signs, quotes or semicolons stays one word."""
    assert exec_command((word, "run")) == f"{written} run"


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("20s", 20.0), ("1min 30s", 90.0), ("500ms", 0.5), ("0", None), ("infinity", None), ("", None)],
)
def test_spans(text: str, expected_s: float | None) -> None:
    """Time spans as systemd shows them."""
    assert span_s(text) == expected_s
