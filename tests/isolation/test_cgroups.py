from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ottod.isolation.caps import Caps, IsolationError
from ottod.isolation.cgroup_base import (
    UNIT_VARIABLE,
    CgroupBase,
    Hierarchy,
    find_base,
    find_hierarchy,
    group_of,
    with_child,
)
from ottod.isolation.cgroups import UNSEEN, CgroupEnclosure, find_leaf, open_leaf
from ottod.isolation.control_group import ControlGroup
from ottod.isolation.enclosure import Enclosures
from ottod.isolation.figures import read_marker
from ottod.isolation.processes import identify, kill_survivors

DEADLINE_S = 30.0

HIDERS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.readline()
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "600"], {})
    os._exit(0)
os.waitpid(middle, 0)
print("hidden", flush=True)
time.sleep(600)
"""
"""Three processes: one in place, one that calls setsid, one with a wiped environment; all but one ignore SIGTERM."""


@pytest.fixture
def base() -> Iterator[CgroupBase]:
    """A base in the real cgroup v2 tree of this machine, without any controller."""
    hierarchy = find_hierarchy()
    if hierarchy is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    name = f"{hierarchy.own.rstrip('/')}/otto-test-{os.getpid()}-{os.urandom(3).hex()}"
    directory = hierarchy.directory(name)
    if directory is None:
        pytest.skip(f"the group {hierarchy.own} is not below {hierarchy.mount}")
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"{directory}: {error.strerror}")
    found = CgroupBase(ControlGroup(directory), name, is_own=True)
    try:
        with_child(lambda pid: found.group.set("cgroup.procs", str(pid)))
    except IsolationError as error:
        directory.rmdir()
        pytest.skip(error.message)
    found.settle(needed=())
    yield found
    found.close()
    assert found.group.kill(deadline_s=DEADLINE_S)
    assert found.group.remove()
    assert not directory.exists()


class Session:
    """A session's leaf with real processes."""

    def __init__(self, base: CgroupBase) -> None:
        self.id = f"s-{os.urandom(5).hex()}"
        self.leaf = open_leaf(base, self.id, Caps())
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, *, marker: bool = True) -> subprocess.Popen[bytes]:
        """Starts three processes that hide, inside. One of them has no marker, or none has."""
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", HIDERS],
            env={"OTTO_SESSION": self.id} if marker else {},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.children.append(child)
        self.leaf.admit(child.pid)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"go\n")
        child.stdin.close()
        assert child.stdout.readline() == b"hidden\n"
        child.stdout.close()
        give_up_at = time.monotonic() + DEADLINE_S
        while all(read_marker(each.pid) for each in self.leaf.members()):
            assert time.monotonic() < give_up_at, "the environment is not wiped"
            time.sleep(0.005)
        return child

    def close(self) -> None:
        known = [found for child in self.children if (found := identify(child.pid)) is not None]
        assert kill_survivors(self.id, deadline_s=DEADLINE_S, known=known) == []
        for child in self.children:
            child.wait(DEADLINE_S)


@pytest.fixture
def session(base: CgroupBase) -> Iterator[Session]:
    found = Session(base)
    yield found
    found.leaf.group.kill(deadline_s=DEADLINE_S)
    found.close()


# ---------------------------------------------------------------- in the real tree


def test_the_end_reaches_all_that_was_started_inside(base: CgroupBase, session: Session) -> None:
    """setsid, a double fork, an ignored SIGTERM and a wiped environment hide nobody from the leaf."""
    child = session.start()
    leaf = session.leaf
    assert leaf.holds(child.pid) and leaf.group.is_populated()
    assert leaf.read().processes == 3
    assert child.pid in {each.pid for each in leaf.members()}
    with pytest.raises(IsolationError) as busy:
        leaf.close()
    assert busy.value.code == "enclosure_busy" and str(child.pid) in busy.value.message
    assert leaf.kill(deadline_s=DEADLINE_S) == []
    assert child.wait(DEADLINE_S) == -9 and leaf.members() == []
    leaf.close()
    assert not leaf.group.exists()
    leaf.close()
    assert leaf.kill(deadline_s=DEADLINE_S) == [], "a leaf that is gone has nobody"
    assert leaf.read().processes == 0


def test_who_moved_out_is_noticed_and_ended(base: CgroupBase, session: Session) -> None:
    """A process that left the leaf is not held any more, and the end finds it and what is below it nevertheless."""
    child = session.start(marker=False)
    known = identify(child.pid)
    elsewhere = base.group / "elsewhere"
    elsewhere.make()
    assert session.leaf.holds(child.pid) and known is not None
    elsewhere.write("cgroup.procs", str(child.pid))
    assert not session.leaf.holds(child.pid)
    assert session.leaf.kill(deadline_s=DEADLINE_S, known=[known]) == []
    assert child.wait(DEADLINE_S) == -9 and not elsewhere.is_populated()


def test_all_who_moved_out_are_found_in_one_walk(base: CgroupBase, session: Session) -> None:
    """Also children of the worker, also those with a wiped environment; taken back, nobody is outside any more."""
    worker = session.start()
    known = identify(worker.pid)
    assert known is not None
    enclosures = Enclosures(base)
    workers = {session.id: known}
    assert enclosures.escaped(workers, [session.leaf]) == {}
    elsewhere = base.group / "elsewhere"
    elsewhere.make()
    for each in session.leaf.members():
        if each != known:
            elsewhere.write("cgroup.procs", str(each.pid))
    # The two have lost their parents: one is known by its marker, the other only if it was seen in time.
    out = enclosures.escaped(workers, [session.leaf])[session.id]
    assert len(out) == 2 and known not in out
    watched = enclosures.reopen(session.id, Caps())
    assert watched is not None
    for each in out:
        watched.admit(each.pid)
    assert enclosures.escaped(workers, [session.leaf]) == {}
    assert enclosures.escaped({}, [session.leaf]) == {}
    # And if they are not taken back, the end knows them nevertheless, without a marker and without a parent.
    for each in out:
        elsewhere.write("cgroup.procs", str(each.pid))
    assert watched.kill(deadline_s=DEADLINE_S) == []
    assert not elsewhere.is_populated()


def test_a_leaf_with_a_longer_name_is_another(base: CgroupBase, session: Session) -> None:
    """Groups are compared by whole names: s-1 does not hold what is in s-12."""
    child = session.start()
    shorter = find_leaf(base, session.id[:-1], Caps())
    assert shorter is None
    stub = CgroupEnclosure(
        session.leaf.group, name=f"{base.name}/sessions/{session.id[:-1]}", session="s-x", caps=Caps()
    )
    assert session.leaf.holds(child.pid) and not stub.holds(child.pid)


def test_groups_that_a_session_made_go_with_it(base: CgroupBase, session: Session) -> None:
    """What is in a group below the leaf is a member, is killed, and does not keep the leaf from being removed."""
    child = session.start()
    inner = session.leaf.group / "inner" / "deeper"
    inner.path.mkdir(parents=True)
    inner.write("cgroup.procs", str(child.pid))
    assert session.leaf.holds(child.pid) and len(session.leaf.members()) == 3
    assert session.leaf.kill(deadline_s=DEADLINE_S) == []
    session.leaf.close()
    assert not session.leaf.group.exists()


def test_a_leaf_that_holds_processes_is_not_given_anew(base: CgroupBase, session: Session) -> None:
    """A second incarnation gets a fresh leaf, and not one in which something of the first still lives."""
    session.start()
    with pytest.raises(IsolationError) as busy:
        open_leaf(base, session.id, Caps())
    assert busy.value.code == "enclosure_busy"
    assert session.leaf.kill(deadline_s=DEADLINE_S) == []
    (session.leaf.group / "litter").make()
    assert open_leaf(base, session.id, Caps()).group.children() == []


def test_the_next_root_finds_the_leaf(base: CgroupBase, session: Session) -> None:
    """It is named for its session, so nothing need be remembered; unknown ones are swept with all in them."""
    child = session.start()
    found = find_leaf(base, session.id, Caps())
    assert found is not None and found.holds(child.pid)
    lost = Session(base)
    runaway = lost.start()
    empty = open_leaf(base, "s-empty", Caps())
    enclosures = Enclosures(base)
    strangers = enclosures.strangers({session.id})
    assert sorted(strangers) == sorted([lost.id, "s-empty"]) and runaway.poll() is None
    assert enclosures.sweep([*strangers, "s-none"]) == strangers
    assert runaway.wait(DEADLINE_S) == -9 and child.poll() is None
    assert not empty.group.exists() and not lost.leaf.group.exists() and session.leaf.group.exists()
    assert enclosures.reopen("s-empty", Caps()) is None
    assert enclosures.read_all([session.leaf])[session.id].processes == 3
    lost.close()


def test_one_daemon_has_a_base(base: CgroupBase) -> None:
    """A second one in the same group would sweep the first one's sessions: it gets the watchdog, and the reason."""
    second = Enclosures(CgroupBase(base.group, base.name, is_own=True))
    assert second.gives_memory
    second.settle()
    assert not second.gives_memory and second.kind == "watchdog" and "another running daemon" in second.reason
    base.close()
    third = CgroupBase(base.group, base.name, is_own=True)
    third.settle(needed=())
    third.close()


def test_settling_moves_processes_one_level_down(base: CgroupBase) -> None:
    """Whatever is in the base itself is in the daemon's leaf afterwards, and settling again changes nothing."""

    def settle(pid: int) -> None:
        base.group.set("cgroup.procs", str(pid))
        assert base.group.pids() == [pid]
        base.settle(needed=())
        base.settle(needed=())
        assert base.group.pids() == []
        assert group_of(pid) == f"{base.name}/daemon"

    with_child(settle)


def test_a_controller_that_is_missing_is_named(base: CgroupBase) -> None:
    """A base that cannot hand down what is needed says which file refused what."""
    present = (base.group.read("cgroup.controllers") or "").split()
    if "memory" in present:
        pytest.skip("this machine has the memory controller")
    with pytest.raises(IsolationError, match=r"cgroup\.subtree_control: \+memory"):
        base.settle()
    with pytest.raises(IsolationError, match=r"memory\.max"):
        open_leaf(base, "s-capped", Caps(memory_bytes=1 << 20))
    assert not (base.sessions / "s-capped").exists(), "a leaf without its caps is not left behind"


def test_a_process_that_is_gone_is_not_admitted(session: Session) -> None:
    """Its code is its own: the worker died at birth, the group is not at fault."""
    child = subprocess.Popen(["/bin/true"])
    child.wait(DEADLINE_S)
    with pytest.raises(IsolationError) as gone:
        session.leaf.admit(child.pid)
    assert gone.value.code == "process_gone"


# ---------------------------------------------------------------- against files that say what a kernel would


def fake_leaf(place: Path, **files: str) -> CgroupEnclosure:
    group = place / "sessions" / "s-1"
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text + "\n")
    found = find_leaf(CgroupBase(ControlGroup(place), "/fake", is_own=True), "s-1", Caps(memory_bytes=1000, pids=7))
    assert found is not None
    return found


def test_kills_for_memory_are_counted_as_events(tmp_path: Path) -> None:
    """A group kill of three processes is one; before Linux 5.17, which has no such count, it is at least one."""
    events = "low 0\nhigh 0\nmax 19\noom 1\noom_kill {}\noom_group_kill {}"
    assert fake_leaf(tmp_path, memory__events=events.format(4, 1)).read().memory_kills == 1
    assert fake_leaf(tmp_path, memory__events=events.format(4, 0)).read().memory_kills == 1
    assert fake_leaf(tmp_path, memory__events=events.format(0, 0)).read().memory_kills == 0
    assert fake_leaf(tmp_path, memory__events="max 3\noom_kill 2").read().memory_kills == 1


def test_the_reading_has_all_accounts(tmp_path: Path) -> None:
    """Memory, peak, tasks, processes, time and refusals come from their files, with the caps beside them."""
    reading = fake_leaf(
        tmp_path,
        memory__current="900",
        memory__peak="950",
        pids__current="12",
        pids__events="max 5",
        cpu__stat="usage_usec 1234567\nuser_usec 1",
        cgroup__procs="10\n11\n0",
    ).read()
    assert (reading.memory_bytes, reading.peak_bytes, reading.cap_bytes) == (900, 950, 1000)
    assert (reading.tasks, reading.processes, reading.pids_cap) == (12, 2, 7)
    assert (reading.cpu_ms, reading.pid_refusals) == (1234, 5)


def test_without_the_kernels_peak_the_largest_look_counts(tmp_path: Path) -> None:
    """Before Linux 5.19 there is no memory.peak."""
    leaf = fake_leaf(tmp_path, memory__current="900")
    assert leaf.read().peak_bytes == 900
    (leaf.group.path / "memory.current").write_text("100\n")
    reading = leaf.read()
    assert (reading.memory_bytes, reading.peak_bytes) == (100, 900)


def test_a_group_that_cannot_be_read_is_not_proved_empty(tmp_path: Path) -> None:
    """No answer is not the answer that nobody is there; a group that is gone is."""
    leaf = fake_leaf(tmp_path)
    (leaf.group.path / "cgroup.events").mkdir()  # A read of it fails for everybody, root included.
    assert leaf.group.is_populated()
    assert leaf.kill(deadline_s=0.05) == [UNSEEN]
    (leaf.group.path / "cgroup.events").rmdir()
    (leaf.group.path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert leaf.kill(deadline_s=0.05) == []
    (leaf.group.path / "cgroup.events").unlink()
    leaf.group.path.rmdir()
    assert not leaf.group.is_populated() and leaf.kill(deadline_s=0.05) == []


@pytest.mark.parametrize("text", ["", "max", "garbage", "-1", "oom_kill", "oom_kill x\n\n \nmore than two words"])
def test_files_with_anything_in_them_are_no_error(tmp_path: Path, text: str) -> None:
    """What is not understood counts as nothing."""
    names = ("memory__current", "memory__peak", "memory__events", "cpu__stat", "pids__current", "cgroup__procs")
    reading = fake_leaf(tmp_path, **dict.fromkeys(names, text)).read()
    assert (reading.memory_bytes, reading.memory_kills, reading.tasks) == (0, 0, 0)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "s-1/x", ".hidden"])
def test_a_session_that_is_no_file_name_gets_no_leaf(tmp_path: Path, name: str) -> None:
    """A leaf is made in the base and nowhere else."""
    with pytest.raises(IsolationError):
        open_leaf(CgroupBase(ControlGroup(tmp_path), "", is_own=True), name, Caps())


def test_a_mount_that_shows_a_part_of_the_tree(tmp_path: Path) -> None:
    """In a container the mount's top may be a group below the real one, and our own group may be outside of it."""
    part = Hierarchy(tmp_path, "/box/1", "/box/1/app")
    assert part.directory("/box/1/app") == tmp_path / "app"
    assert part.directory("/box/1") == tmp_path
    assert part.directory("/box/12/app") is None
    assert part.directory("/../other") is None
    whole = Hierarchy(tmp_path, "/", "/")
    assert whole.directory("/") == tmp_path and whole.directory("/a/b") == tmp_path / "a/b"


def test_the_hierarchy_is_read_from_proc(tmp_path: Path) -> None:
    """The cgroup2 mount among others, and the line of the v2 group among those of v1."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("5:memory:/x\n0::/user.slice/otto.service\n")
    (tmp_path / "self/mountinfo").write_text(
        "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 24 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    )
    found = find_hierarchy(tmp_path)
    assert found == Hierarchy(Path("/sys/fs/cgroup/unified"), "/", "/user.slice/otto.service")
    (tmp_path / "self/cgroup").write_text("5:memory:/x\n")
    assert find_hierarchy(tmp_path) is None
    assert find_hierarchy(tmp_path / "nothing") is None


def fake_group(place: Path, name: str, *, controllers: str = "memory pids cpu", procs: str = "") -> Path:
    group = place / name
    group.mkdir(parents=True, exist_ok=True)
    for file, text in (("cgroup.type", "domain"), ("cgroup.controllers", controllers), ("cgroup.procs", procs)):
        (group / file).write_text(text + "\n")
    return group


def test_a_group_with_strangers_is_not_taken(tmp_path: Path) -> None:
    """A daemon from a terminal leaves the shell and whatever else is in its group where they are."""
    fake_group(tmp_path, "slice/app.scope", procs=f"{os.getpid()}\n1")
    found, reason = find_base(Hierarchy(tmp_path, "/", "/slice/app.scope"))
    assert found is None
    assert "(1)" in reason and "not the daemon's" in reason


def test_every_reason_is_given(tmp_path: Path) -> None:
    """Why not the unit that was asked for, and why not the own group: both, in that order."""
    fake_group(tmp_path, "slice/otto.service", controllers="pids", procs=str(os.getpid()))
    hierarchy = Hierarchy(tmp_path, "/", "/slice/otto.service")
    found, reason = find_base(hierarchy, unit="otto-sessions.service")
    assert found is None and reason.startswith("OTTO_SESSIONS_UNIT=otto-sessions.service: there is no group")
    assert "no memory controller" in reason
    fake_group(tmp_path, "slice/otto-sessions.service", controllers="memory")
    assert "no pids controller" in find_base(hierarchy, unit="otto-sessions.service")[1]
    for name in ("..", "a/b", "."):
        assert "not the name of a unit" in find_base(hierarchy, unit=name)[1]
    assert find_base(None) == (None, "no cgroup v2 hierarchy is mounted")


def test_choosing_never_fails() -> None:
    """Whatever this host gives, a kind comes out, settling works, and the watchdog has a reason."""
    found = Enclosures.find(environ={UNIT_VARIABLE: "no-such-unit.service"})
    assert found.kind in ("cgroup", "watchdog") and found.gives_memory == (found.kind == "cgroup")
    assert UNIT_VARIABLE in found.reason or "hierarchy" in found.reason
    none = Enclosures(None)
    assert none.strangers(set()) == none.sweep(["s-any"]) == [] and none.place == ""
