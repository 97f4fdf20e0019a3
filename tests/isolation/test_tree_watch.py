from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ottod.isolation import figures
from ottod.isolation.caps import Caps, IsolationError
from ottod.isolation.enclosure import HASTY_LOOK_S, LOOK_S, Enclosures
from ottod.isolation.processes import (
    ProcessId,
    identify,
    is_alive,
    kill_survivors,
    send_signal,
    survivors,
)
from ottod.isolation.tree_watch import TreeWatch, Watched

DEADLINE_S = 30.0
MIB = 1 << 20

ALLOCATE = """
import mmap, os, sys, time
size_bytes, parts = int(sys.argv[1]), int(sys.argv[2])
for _ in range(parts - 1):
    if os.fork() == 0:
        break
memory = mmap.mmap(-1, size_bytes // parts)
for start in range(0, len(memory), mmap.PAGESIZE):
    memory[start] = 1
print("done", flush=True)
time.sleep(600)
"""
SHARE = """
import mmap, os, sys, time
memory = bytearray(int(sys.argv[1]))
for start in range(0, len(memory), mmap.PAGESIZE):
    memory[start] = 1
for _ in range(int(sys.argv[2]) - 1):
    if os.fork() == 0:
        break
print("done", flush=True)
time.sleep(600)
"""
ESCAPE = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    middle = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == middle:
        time.sleep(0.001)
    print("done", flush=True)
    if sys.argv[1] == "wiped":
        sys.stdin.readline()
        os.execve("/bin/sleep", ["sleep", "600"], {})
    time.sleep(600)
time.sleep(600)
"""
THREADS = """
import sys, threading, time
for _ in range(int(sys.argv[1])):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("done", flush=True)
time.sleep(600)
"""
BOMB = """
import os, time
for _ in range(6):  # It ends at 64, or a failing test would take the machine with it.
    os.fork()
    time.sleep(0.2)
time.sleep(600)
"""


class Tree:
    """A session with a real process of its own; nothing of it is alive afterwards."""

    def __init__(self) -> None:
        self.session = f"s-{os.urandom(5).hex()}"
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, script: str, *arguments: object, lines: int = 1, marker: bool = True) -> subprocess.Popen[bytes]:
        """Starts a script and waits until it has said `lines` times that it is ready."""
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", script, *map(str, arguments)],
            env={"OTTO_SESSION": self.session} if marker else {},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.children.append(child)
        assert child.stdout is not None
        for _ in range(lines):
            assert child.stdout.readline() == b"done\n"
        return child

    def close(self) -> None:
        known = [found for child in self.children if (found := identify(child.pid)) is not None]
        assert kill_survivors(self.session, deadline_s=DEADLINE_S, known=known) == []
        for child in self.children:
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()
            child.wait(DEADLINE_S)


@pytest.fixture
def tree() -> Iterator[Tree]:
    found = Tree()
    yield found
    found.close()


@pytest.fixture
def other() -> Iterator[Tree]:
    found = Tree()
    yield found
    found.close()


def seed(child: subprocess.Popen[bytes]) -> ProcessId:
    found = identify(child.pid)
    assert found is not None
    return found


def watch(caps: Caps, session: str, *children: subprocess.Popen[bytes]) -> Watched:
    return Watched(session, tuple(seed(each) for each in children), caps)


def watchdog() -> Enclosures:
    return Enclosures(None)


def until(condition: object) -> None:
    assert callable(condition)
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, "the condition was not met in time"
        time.sleep(0.01)


def test_a_tree_over_its_cap_is_noticed_though_no_process_is(tree: Tree) -> None:
    """Four processes of 30 MiB each are over a cap of 100 MiB, and under one of 300."""
    child = tree.start(ALLOCATE, 120 * MIB, 4, lines=4)
    tight, wide = Caps(memory_bytes=100 * MIB), Caps(memory_bytes=300 * MIB)
    reading = TreeWatch().read_all([watch(tight, tree.session, child)])[tree.session]
    assert reading.is_over_memory and reading.is_exact
    assert reading.processes == 4 and 120 * MIB < reading.memory_bytes < 200 * MIB
    assert reading.cap_bytes == 100 * MIB
    assert not TreeWatch().read_all([watch(wide, tree.session, child)])[tree.session].is_over_memory


def test_shared_pages_are_counted_once(tree: Tree) -> None:
    """Eight processes that share 60 MiB have an RSS far over a cap of 200 MiB, and are not over it."""
    child = tree.start(SHARE, 60 * MIB, 8, lines=8)
    rss_bytes = sum(
        each.rss_bytes
        for each in figures.read_figures().values()
        if each.id.pid == child.pid or each.parent_pid == child.pid
    )
    assert rss_bytes > 400 * MIB
    reading = TreeWatch().read_all([watch(Caps(memory_bytes=200 * MIB), tree.session, child)])[tree.session]
    assert reading.is_exact and not reading.is_over_memory
    assert 60 * MIB < reading.memory_bytes < 200 * MIB


def test_growth_is_seen_without_an_exact_look(tree: Tree) -> None:
    """Between exact figures the growth of RSS is added to the last one; far from the cap nothing exact is needed."""
    child = tree.start(ALLOCATE, 64 * MIB, 1)
    watched = TreeWatch(exact_per_walk=0, new_per_walk=0)
    asked = watch(Caps(memory_bytes=4096 * MIB), tree.session, child)
    reading = watched.read_all([asked])[tree.session]
    assert not reading.is_exact and reading.memory_bytes >= 64 * MIB
    near = asked._replace(caps=Caps(memory_bytes=64 * MIB))
    assert watched.read_all([near])[tree.session].is_exact
    later = watched.read_all([asked])[tree.session]
    assert not later.is_exact and abs(later.memory_bytes - reading.memory_bytes) < 32 * MIB


def test_overdue_processes_take_turns(tree: Tree) -> None:
    """With one exact look a walk, four processes have all been measured after four walks."""
    child = tree.start(SHARE, 60 * MIB, 4, lines=4)
    watched = TreeWatch(exact_per_walk=0, new_per_walk=1)
    asked = watch(Caps(), tree.session, child)
    amounts = [watched.read_all([asked])[tree.session].memory_bytes for _ in range(5)]
    assert amounts[0] > 150 * MIB, "three of four are taken at their RSS"
    assert amounts[-1] < 120 * MIB, "all are known exactly by now"


def test_old_figures_are_renewed(tree: Tree) -> None:
    """When one of two that share pages ends, the other has them alone. RSS does not say so; a new figure does."""
    child = tree.start(SHARE, 60 * MIB, 2, lines=2)
    lazy, diligent = TreeWatch(exact_per_walk=0), TreeWatch(exact_per_walk=1)
    asked = watch(Caps(), tree.session, child)
    for watched in (lazy, diligent):
        assert watched.read_all([asked])[tree.session].processes == 2
    other_half = next(each for each in lazy.members(tree.session) if each.pid != child.pid)
    assert send_signal(other_half, signal.SIGKILL)
    until(lambda: not is_alive(other_half))
    assert lazy.read_all([asked])[tree.session].memory_bytes < 55 * MIB
    assert diligent.read_all([asked])[tree.session].memory_bytes > 60 * MIB


def test_trees_near_their_caps_take_turns(tree: Tree, other: Tree) -> None:
    """With work for one tree a walk, both are found over their caps, one after the other; none is starved."""
    asked = [
        watch(Caps(memory_bytes=20 * MIB), each.session, each.start(ALLOCATE, 40 * MIB, 2, lines=2))
        for each in (tree, other)
    ]
    watched = TreeWatch(exact_per_walk=0, new_per_walk=0, near_per_walk=1)
    over = []
    for _ in range(4):
        readings = watched.read_all(asked)
        over.append([session for session, reading in readings.items() if reading.is_over_memory])
    assert all(len(each) == 1 for each in over)
    assert over[0] == over[2] != over[1] == over[3]


def test_an_escaped_process_is_still_the_sessions(tree: Tree) -> None:
    """Who was seen below the worker stays the session's after setsid, a double fork and a wiped environment."""
    child = tree.start(ESCAPE, "wiped")
    watched = TreeWatch()
    asked = watch(Caps(), tree.session, child)
    assert watched.read_all([asked])[tree.session].processes == 2
    runaway = next(each for each in watched.members(tree.session) if each.pid != child.pid)
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    child.stdin.flush()
    until(lambda: figures.read_marker(runaway.pid) == "")
    assert watched.read_all([asked])[tree.session].processes == 2
    assert runaway in watched.members(tree.session)
    enclosure = watchdog().open(tree.session, Caps())
    assert kill_survivors(tree.session, deadline_s=DEADLINE_S, known=[runaway]) == []
    enclosure.close()


def test_an_orphan_is_recognised_by_its_marker(tree: Tree) -> None:
    """One that was born and orphaned between two looks is found without a parent that leads to it."""
    child = tree.start(ESCAPE, "kept")
    child.kill()
    child.wait(DEADLINE_S)
    asked = Watched(tree.session, (), Caps())
    assert TreeWatch().read_all([asked])[tree.session].processes == 1


def test_a_stranger_that_becomes_another_program_is_asked_again(tree: Tree) -> None:
    """Between fork and execve a process shows its parent's environment: what it becomes is looked at again."""
    script = (
        "import os, sys; print('done', flush=True); sys.stdin.readline()\n"
        "os.execve('/bin/sleep', ['sleep', '600'], {'OTTO_SESSION': sys.argv[1]})"
    )
    child = tree.start(script, tree.session, marker=False)
    watched, asked = TreeWatch(), Watched(tree.session, (), Caps())
    for _ in range(3):
        assert watched.read_all([asked])[tree.session].processes == 0
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    child.stdin.flush()
    until(lambda: figures.read_marker(child.pid) == tree.session)
    assert watched.read_all([asked])[tree.session].processes == 1
    assert watched.kill(tree.session, deadline_s=DEADLINE_S, known=()) == []
    assert child.wait(DEADLINE_S) == -9


def test_sessions_are_told_apart(tree: Tree, other: Tree) -> None:
    """Two trees in one walk: each gets its own processes, also if one is watched alone in between."""
    here, there = tree.start(ALLOCATE, 40 * MIB, 2, lines=2), other.start(ALLOCATE, 9 * MIB, 3, lines=3, marker=False)
    watched = TreeWatch()
    both = [watch(Caps(), tree.session, here), watch(Caps(), other.session, there)]
    for asked in (both, both[:1], both):
        readings = watched.read_all(asked)
        assert readings[tree.session].processes == 2
        assert len(readings) == len(asked)
    assert readings[other.session].processes == 3
    assert len(watched.members(other.session)) == 3
    watched.forget(other.session)
    assert watched.members(other.session) == []
    assert watched.read_all([]) == {}


def test_a_recycled_pid_is_not_the_worker(tree: Tree) -> None:
    """A seed is a pid and a start time: who has the pid now may be somebody else."""
    child = tree.start(ALLOCATE, MIB, 1, marker=False)
    known = seed(child)
    stranger = Watched(tree.session, (ProcessId(known.pid, known.start_ticks - 1),), Caps())
    assert TreeWatch().read_all([stranger])[tree.session].processes == 0


def test_this_process_and_its_ancestors_are_nobodys() -> None:
    """Even if they are named, they are not counted, and so will not be killed."""
    own = identify(os.getpid())
    parent = identify(os.getppid())
    assert own is not None and parent is not None
    watched = TreeWatch()
    assert watched.read_all([Watched("s-own", (own, parent), Caps())])["s-own"].processes == 0
    assert watched.members("s-own") == []


def test_threads_count_as_tasks(tree: Tree) -> None:
    """A cap on tasks is reached by threads as well as by processes, as with pids.max."""
    child = tree.start(THREADS, 20)
    reading = TreeWatch().read_all([watch(Caps(pids=20), tree.session, child)])[tree.session]
    assert reading.processes == 1 and reading.tasks == 21 and reading.is_over_pids
    assert not TreeWatch().read_all([watch(Caps(pids=21), tree.session, child)])[tree.session].is_over_pids


def test_a_watchdog_enclosure_ends_a_fork_bomb(tree: Tree) -> None:
    """Looks say when the tree is over its cap of tasks; the end leaves nothing."""
    enclosures = watchdog()
    enclosure = enclosures.open(tree.session, Caps(pids=12))
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", BOMB], env={"OTTO_SESSION": tree.session}, start_new_session=True
    )
    tree.children.append(child)
    enclosure.admit(child.pid)
    until(lambda: enclosures.read_all([enclosure])[tree.session].is_over_pids)
    assert enclosure.kill(deadline_s=DEADLINE_S) == []
    assert survivors(tree.session) == []
    child.wait(DEADLINE_S)
    enclosure.close()


def test_a_watchdog_enclosure_remembers_the_peak(tree: Tree) -> None:
    """After the greedy part has ended, the peak is still known, and processor time does not run backwards."""
    enclosures = watchdog()
    enclosure = enclosures.open(tree.session, Caps(memory_bytes=50 * MIB, pids=8))
    child, greedy = tree.start(ALLOCATE, MIB, 1), tree.start(ALLOCATE, 80 * MIB, 1)
    enclosure.admit(child.pid)
    first = enclosures.read_all([enclosure])[tree.session]
    assert first.is_over_memory and first.processes == 2 and first.memory_kills == 0
    assert enclosures.next_look_s([first]) == HASTY_LOOK_S
    greedy.kill()
    greedy.wait(DEADLINE_S)
    later = enclosure.read()
    assert not later.is_over_memory and later.peak_bytes == first.memory_bytes > later.memory_bytes
    assert later.cpu_ms >= first.cpu_ms
    assert enclosures.next_look_s([later]) == LOOK_S


def test_holds_and_members_follow_the_tree(tree: Tree, other: Tree) -> None:
    """Held is what is the worker, below it, or marked; a stranger is not, nor one that is gone."""
    enclosure = watchdog().open(tree.session, Caps())
    child, stranger = tree.start(ALLOCATE, MIB, 2, lines=2, marker=False), other.start(ALLOCATE, MIB, 1)
    assert not enclosure.holds(child.pid)
    enclosure.admit(child.pid)
    assert enclosure.holds(child.pid) and not enclosure.holds(stranger.pid)
    assert len(enclosure.members()) == 2
    with pytest.raises(IsolationError):
        enclosure.close()
    assert enclosure.kill(deadline_s=DEADLINE_S) == []
    assert stranger.poll() is None
    child.wait(DEADLINE_S)
    enclosure.close()
    with pytest.raises(IsolationError) as gone:
        enclosure.admit(child.pid)
    assert gone.value.code == "process_gone"


def test_who_must_not_be_killed_is_not_admitted() -> None:
    """Neither groups nor init nor this process become part of a session."""
    for pid in (0, 1, -1, os.getpid()):
        with pytest.raises(IsolationError):
            watchdog().open("s-x", Caps()).admit(pid)


def test_damaged_figures_are_left_out() -> None:
    """A process that vanishes in the middle of a look gives nothing, and no error."""
    assert figures.read_exact_bytes(2**22 + 1) is None
    assert figures.swap_bytes(2**22 + 1) == 0
    assert figures.read_marker(2**22 + 1) == ""
    assert os.getpid() in figures.read_figures()
