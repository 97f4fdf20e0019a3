#!/usr/bin/python3
"""Enclosures on a host with systemd and every cgroup v2 controller. Runs as root in a machine of its own:

    vm-run --copy ottod:/opt/otto/ottod --copy SITE/msgspec:/opt/otto/msgspec tests/vm/cgroups.py

Services of three kinds run the claims below: as root and as a user in their own delegated group, and as root with the
sessions in a unit beside it. Each claim is one PASS or FAIL line; the exit status is 1 if any failed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "/opt/otto")

DEADLINE_S = 120.0
CAP_BYTES = 64 << 20
CHECK = "/opt/otto/check.py"
SESSIONS_UNIT = "otto-sessions.service"

HOG = """
import mmap, os, sys
sys.stdin.readline()
memory = mmap.mmap(-1, 256 << 20)
for start in range(0, len(memory), mmap.PAGESIZE):
    memory[start] = 1
"""
# One that stays, one that calls setsid, and one that is forked twice; all ignore SIGTERM and have lost the marker.
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
BOMB = """
import os, sys, time
sys.stdin.readline()
for _ in range(64):
    try:
        if os.fork() == 0:
            time.sleep(600)
    except BlockingIOError:
        pass
time.sleep(600)
"""

failed = []


def check(claim: str, holds: object, seen: object = "") -> None:
    print(f"{'PASS' if holds else 'FAIL'}  {claim}" + (f"  ({seen})" if seen != "" else ""), flush=True)
    if not holds:
        failed.append(claim)


def until(condition: Callable[[], object]) -> bool:
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.05)
    return True


def start(script: str, session: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", script],
        env={"OTTO_SESSION": session},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.close()


def hide(process: subprocess.Popen[bytes]) -> None:
    """Returns when the two that hide do so, and what was between them and the first has ended."""
    go(process)
    assert process.stdout is not None
    process.stdout.readline()


# ---------------------------------------------------------------- inside a service


def claims(mode: str) -> None:
    from ottod.isolation.enclosure import Caps, Enclosures

    found = Enclosures.find(environ=os.environ)
    own = Path("/proc/self/cgroup").read_text().strip()
    check(f"{mode}: cgroups are found", found.kind == "cgroup" and found.gives_memory, found.reason or found.place)
    found.settle()
    check(f"{mode}: the base could be settled", found.kind == "cgroup", found.reason)
    if found.kind != "cgroup":
        return
    if mode == "sibling":
        check(f"{mode}: the base is the other unit", found.place.endswith(SESSIONS_UNIT), found.place)
        check(f"{mode}: root stays where it was", Path("/proc/self/cgroup").read_text().strip() == own)
    else:
        check(f"{mode}: root has moved into the daemon's leaf", _own_group().endswith("/daemon"), _own_group())
        weight = Path(found.place, "daemon/cpu.weight").read_text().strip()
        check(f"{mode}: the daemon's share of the processor is the largest", weight == "10000", weight)
    _memory(mode, found, Caps(memory_bytes=CAP_BYTES, pids=50, cpu_weight=42))
    _pids(mode, found, Caps(pids=10))
    _end(mode, found, Caps())
    _lock(mode)
    _rebirth(mode, found, Caps(memory_bytes=CAP_BYTES))


def _own_group() -> str:
    return Path("/proc/self/cgroup").read_text().strip()


def _memory(mode: str, found: object, caps: object) -> None:
    from ottod.isolation.enclosure import Caps, Enclosures

    assert isinstance(found, Enclosures) and isinstance(caps, Caps)
    enclosure, sibling = found.open("s-memory", caps), found.open("s-sibling", Caps(memory_bytes=CAP_BYTES))
    group = Path(found.place, "sessions/s-memory")
    files = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.weight")
    values = [(group / name).read_text().strip() if (group / name).exists() else None for name in files]
    check(f"{mode}: the caps are set", values[0] == str(CAP_BYTES) and values[2:] == ["1", "50", "42"], values)
    mate, hog, other = start(HIDERS, "s-memory"), start(HOG, "s-memory"), start(HIDERS, "s-sibling")
    for each in (mate, hog):
        check(f"{mode}: not held before it is admitted", not enclosure.holds(each.pid))
        enclosure.admit(each.pid)
        check(f"{mode}: held afterwards", enclosure.holds(each.pid))
    sibling.admit(other.pid)
    hide(mate), hide(other)
    check(f"{mode}: hidden processes are members", len(enclosure.members()) == 4, enclosure.members())
    go(hog)
    check(f"{mode}: the hog is killed", hog.wait(DEADLINE_S) == -signal.SIGKILL)
    check(f"{mode}: with its whole session", mate.wait(DEADLINE_S) == -9 and until(lambda: not enclosure.members()))
    seen = found.read_all([enclosure, sibling])
    reading = seen["s-memory"]
    check(f"{mode}: one kill for memory is counted", reading.memory_kills == 1, reading)
    check(f"{mode}: the peak is the cap", 0.9 * CAP_BYTES < reading.peak_bytes <= CAP_BYTES, reading.peak_bytes)
    check(f"{mode}: the sibling lives and has none", other.poll() is None and seen["s-sibling"].memory_kills == 0)
    check(f"{mode}: nothing remains", enclosure.kill(deadline_s=30) == [])
    enclosure.close()
    check(f"{mode}: the leaf is gone", not group.exists())
    enclosure.close()
    check(f"{mode}: a fresh leaf counts from 0", found.open("s-memory", caps).read().memory_kills == 0)
    found.open("s-memory", caps).close()
    check(f"{mode}: the sibling ends", sibling.kill(deadline_s=30) == [])
    sibling.close()
    other.wait(DEADLINE_S)


def _pids(mode: str, found: object, caps: object) -> None:
    from ottod.isolation.enclosure import Caps, Enclosures

    assert isinstance(found, Enclosures) and isinstance(caps, Caps)
    enclosure = found.open("s-pids", caps)
    bomb = start(BOMB, "s-pids")
    enclosure.admit(bomb.pid)
    go(bomb)
    check(f"{mode}: forks are refused", until(lambda: enclosure.read().pid_refusals > 0))
    check(f"{mode}: tasks stay within the cap", enclosure.read().tasks <= 10, enclosure.read())
    check(f"{mode}: the bomb ends", enclosure.kill(deadline_s=30) == [])
    enclosure.close()
    bomb.wait(DEADLINE_S)


def _end(mode: str, found: object, caps: object) -> None:
    """An escape: root's own group is open to who may write to cgroupfs."""
    from ottod.isolation.enclosure import Caps, Enclosures
    from ottod.isolation.processes import identify

    assert isinstance(found, Enclosures) and isinstance(caps, Caps)
    enclosure = found.open("s-end", caps)
    hiders, runaway = start(HIDERS, "s-end"), start(HIDERS, "s-end")
    for each in (hiders, runaway):
        enclosure.admit(each.pid)
        hide(each)
    check(f"{mode}: six processes", len(enclosure.members()) == 6, enclosure.members())
    elsewhere = found.open("s-elsewhere", Caps())
    elsewhere.admit(runaway.pid)
    check(f"{mode}: an escaped process is noticed", not enclosure.holds(runaway.pid))
    workers = {"s-end": identity} if (identity := identify(hiders.pid)) else {}
    out = found.escaped(workers, [enclosure])
    check(f"{mode}: by its marker among all of the session", [p.pid for p in out["s-end"]] == [runaway.pid], out)
    try:
        enclosure.close()
        check(f"{mode}: a leaf with processes is not removed", False)
    except Exception as error:  # noqa: BLE001 - its type is the claim
        check(f"{mode}: a leaf with processes is not removed", type(error).__name__ == "IsolationError", error)
    known = [identity] if (identity := identify(runaway.pid)) else []
    check(f"{mode}: the end reaches it too", enclosure.kill(deadline_s=30, known=known) == [])
    check(f"{mode}: it is dead", runaway.wait(DEADLINE_S) == -9 and hiders.wait(DEADLINE_S) == -9)
    enclosure.close(), elsewhere.close()


def _lock(mode: str) -> None:
    code = (
        "import os, sys; sys.path.insert(0, '/opt/otto')\n"
        "from ottod.isolation.enclosure import Enclosures\n"
        "found = Enclosures.find(environ=os.environ); found.settle(); print(found.kind, found.reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    check(f"{mode}: a second daemon does not get the base", done.stdout.startswith("watchdog "), done.stdout.strip())


def _rebirth(mode: str, found: object, caps: object) -> None:
    """What the next root finds: the same base, the leaf with its counts, and what nobody knows is swept."""
    from ottod.isolation.enclosure import Caps, Enclosures

    assert isinstance(found, Enclosures) and isinstance(caps, Caps)
    first, lost = found.open("s-first", caps), found.open("s-lost", caps)
    empty = found.open("s-empty", caps)
    hog, worker, leftover = start(HOG, "s-first"), start(HIDERS, "s-first"), start(HIDERS, "s-lost")
    first.admit(hog.pid), go(hog), hog.wait(DEADLINE_S)
    first.admit(worker.pid), lost.admit(leftover.pid)
    found.close()
    again = Enclosures.find(environ=os.environ)
    again.settle()
    check(f"{mode}: the next root finds the same base", again.place == found.place, (again.place, again.reason))
    adopted = again.reopen("s-first", Caps(memory_bytes=CAP_BYTES))
    check(f"{mode}: and the leaf of a session", adopted is not None and adopted.holds(worker.pid))
    check(f"{mode}: with its counts", adopted is not None and adopted.read().memory_kills == 1)
    check(f"{mode}: and none for a session that had none", again.reopen("s-none", Caps()) is None)
    check(f"{mode}: the unknown is swept", sorted(again.sweep(again.strangers({"s-first"}))) == ["s-empty", "s-lost"])
    check(f"{mode}: and killed", leftover.wait(DEADLINE_S) == -9 and worker.poll() is None)
    check(f"{mode}: their leaves are gone", not Path(again.place, "sessions/s-lost").exists() and empty is not None)
    again.close()
    print(f"INFO  {mode}: worker {worker.pid} is left for the restart of the unit", flush=True)


def after_restart(mode: str) -> None:
    """The second life of a unit whose sessions are in another unit."""
    from ottod.isolation.enclosure import Caps, Enclosures

    found = Enclosures.find(environ=os.environ)
    found.settle()
    check(f"{mode}: the restarted unit finds its base", found.kind == "cgroup", found.reason)
    adopted = found.reopen("s-first", Caps())
    check(f"{mode}: its session has lived on", adopted is not None and len(adopted.members()) >= 1)
    check(f"{mode}: and can be ended", adopted is not None and adopted.kill(deadline_s=30) == [])
    if adopted is not None:
        adopted.close()


def proofs(mode: str) -> None:
    """The proof of the layer, as doctor asks for it."""
    from ottod.isolation.enclosure import Enclosures
    from ottod.isolation.memory_layer import MemoryLayer

    found = Enclosures.find(environ=os.environ)
    found.settle()
    report = MemoryLayer(found).prove()
    check(f"{mode}: the layer is proved", report.status == "given", report)
    left = [path.name for path in Path(found.place, "sessions").iterdir() if path.is_dir()]
    check(f"{mode}: the proof leaves nothing", left in ([], ["s-first"]), left)
    found.close()


def service(mode: str) -> None:
    mark = Path(f"/run/otto-check/{mode}")
    if mark.exists():
        after_restart(mode)
    else:
        mark.touch()
        claims(mode)
        proofs(mode)
    print("RESULT " + ("bad" if failed else "ok"), flush=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    signal.pause()


# ---------------------------------------------------------------- around the services


UNIT = """[Service]
Type=notify
NotifyAccess=all
User={user}
Delegate=yes
Environment=OTTO_SESSIONS_UNIT={sessions} PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 /opt/otto/check.py {mode}
StandardOutput=append:/run/otto-check/{mode}.log
StandardError=inherit
TimeoutStartSec=600
TimeoutStopSec=5
"""
HOLDER = """[Service]
Delegate=yes
ExecStart=/bin/sleep infinity
"""


def systemctl(*arguments: str) -> int:
    return subprocess.run(["systemctl", *arguments], timeout=900, check=False).returncode


def run_service(mode: str, user: str, sessions: str = "") -> None:
    text = UNIT.format(mode=mode, user=user, sessions=sessions)
    Path(f"/etc/systemd/system/otto-{mode}.service").write_text(text)
    systemctl("daemon-reload")
    status = systemctl("start", f"otto-{mode}")
    show_log(mode)
    check(f"{mode}: the unit has started", status == 0)


def show_log(mode: str) -> None:
    log = Path(f"/run/otto-check/{mode}.log")
    print(log.read_text(), end="", flush=True)
    check(f"{mode}: every claim held", "RESULT ok" in log.read_text())
    log.write_text("")


def main() -> int:
    subprocess.run(["useradd", "-m", "otto"], check=True)
    Path("/run/otto-check").mkdir(mode=0o777)
    os.chmod("/run/otto-check", 0o777)
    Path(CHECK).write_text(Path(__file__).read_text())
    for mode, user in (("root", "root"), ("user", "otto")):
        run_service(mode, user)
        check(
            f"{mode}: no memory kill of a session took the unit down",
            systemctl("is-active", "--quiet", f"otto-{mode}") == 0,
        )
        group = Path(f"/sys/fs/cgroup/system.slice/otto-{mode}.service")
        check(f"{mode}: it stops", systemctl("stop", f"otto-{mode}") == 0 and not group.exists())
    Path(f"/etc/systemd/system/{SESSIONS_UNIT}").write_text(HOLDER)
    systemctl("daemon-reload")
    systemctl("start", SESSIONS_UNIT)
    run_service("sibling", "root", SESSIONS_UNIT)
    check("sibling: the unit restarts", systemctl("restart", "otto-sibling") == 0)
    show_log("sibling")
    systemctl("stop", "otto-sibling", SESSIONS_UNIT)
    check("sibling: no group is left", not Path(f"/sys/fs/cgroup/system.slice/{SESSIONS_UNIT}").exists())
    print(f"{len(failed)} failed: {failed}" if failed else "all held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(service(sys.argv[1]) if len(sys.argv) > 1 else main())
