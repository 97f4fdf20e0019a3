from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottod.errors import RefusedError, ToolError
from ottod.isolation import bubblewrap, landlock, launch_config, processes
from ottod.isolation.programs import ConfinedPrograms, Confinement
from ottod.protocol.toolio import ProgramResult
from tests.fakes.session_place import SessionPlace, run

needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
DEADLINE_S = 60.0
NO_SANDBOX = bubblewrap.trial()


@pytest.fixture(params=["sandbox", "landlock"])
def bwrap(request: pytest.FixtureRequest) -> str:
    """Every claim holds with bubblewrap, and, but for what only a namespace can give, without it."""
    if request.param == "landlock":
        return ""
    if NO_SANDBOX:
        pytest.skip(NO_SANDBOX)
    return bubblewrap.find()


@pytest.fixture
def make_place(tmp_path: Path, bwrap: str) -> Iterator[Callable[..., SessionPlace]]:
    """Makes session places; nothing of their sessions is alive afterwards."""
    made: list[SessionPlace] = []

    def make(**options: Any) -> SessionPlace:
        made.append(SessionPlace(tmp_path, bwrap=bwrap, **options))
        return made[-1]

    yield make
    for place in made:
        place.close()
        assert processes.survivors(place.session) == []


@pytest.fixture
def place(make_place: Callable[..., SessionPlace]) -> SessionPlace:
    return make_place()


def sh(
    place: SessionPlace, script: str, *, timeout_s: float = 20.0, loop: str = "uvloop", **more: object
) -> ProgramResult:
    options = {"max_output_bytes": 10_000, **more}
    return run(place.programs.run(["/bin/sh", "-c", script], timeout_s=timeout_s, **options), loop=loop)  # type: ignore[arg-type]


def until_it_runs(
    place: SessionPlace, script: str, is_under_way: Callable[[ProgramResult], bool], **more: object
) -> tuple[ProgramResult, float]:
    """What came of a call that runs out of time, and that time: more of it until the script is under way by then.

    How long a program takes to start is the machine's affair.
    """
    for timeout_s in (0.5, 2.0, 8.0, 32.0):
        result = sh(place, script, timeout_s=timeout_s, **more)
        if is_under_way(result):
            break
    return result, timeout_s


def running(argument: str) -> list[int]:
    """The live processes, on the whole machine, that were started with this argument."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argument.encode() in words:
            found.append(pid)
    return found


def eventually(is_so: Callable[[], bool]) -> bool:
    """Looks until it is so, at most DEADLINE_S."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not is_so():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.01)
    return True


def test_the_temporary_directory_is_the_sessions_own(make_place: Callable[..., SessionPlace], tmp_path: Path) -> None:
    """A client with a TMPDIR of its own hands it on; programs get one that they can write all the same."""
    elsewhere = tmp_path / "clients-own"
    elsewhere.mkdir()
    place = make_place(env={"PATH": "/usr/bin:/bin", "TMPDIR": str(elsewhere), "TMP": "/nowhere"})
    result = sh(place, 'echo x > "$TMPDIR/x" && test "$TMP" = "$TMPDIR" && echo "$TMPDIR"')
    assert result.exit_status == 0, result.output
    assert result.output.strip() != str(elsewhere)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_output_and_status_come_back(place: SessionPlace, loop: str) -> None:
    """Standard output and error come in their order, with the exit status, on either loop."""
    result = sh(place, "echo one; echo two >&2; echo three; exit 3", loop=loop)
    assert (result.ended, result.exit_status, result.output) == ("exited", 3, "one\ntwo\nthree\n")
    assert (result.truncated, result.total_bytes, result.leftovers) == (False, 14, 0)
    assert sh(place, "kill -SEGV $$", loop=loop).exit_status == -11


def test_standard_input_is_what_was_given(place: SessionPlace) -> None:
    """A program reads the given bytes and then the end, also when they exceed any pipe."""
    data = os.urandom(300_000)
    assert sh(place, "wc -c", stdin=data).output.strip() == "300000"
    assert sh(place, "cat; echo end").output == "end\n"


def test_the_environment_is_the_sessions_alone(
    make_place: Callable[..., SessionPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the daemon's environment is visible: no key, no secret, no path."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "leak-1")
    monkeypatch.setenv("OTTO_SECRET", "leak-2")
    place = make_place(env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "LANG": "C.UTF-8"})
    result = sh(place, "env", env={"EXTRA": "1", "OTTO_SESSION": "forged"})
    names = dict(line.split("=", 1) for line in result.output.splitlines())
    assert "leak" not in result.output and "forged" not in result.output
    assert names.keys() <= {
        *("PATH", "HOME", "LANG", "EXTRA", "PWD", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME"),
        *("OTTO_SESSION", "OTTO_CALL", "SHLVL", "_", "OLDPWD"),
    }
    assert names["OTTO_SESSION"] == place.session and names["PWD"] == str(place.project)
    assert names["PATH"] == "/usr/bin:/bin"


@needs_landlock
def test_the_daemons_environment_cannot_be_read_from_proc(place: SessionPlace) -> None:
    """Neither this process's environment and memory nor its keeper's are open to a program, also for root."""
    own = os.getpid()
    result = sh(
        place,
        f"cat /proc/{own}/environ; head -c1 /proc/{own}/mem; cat /proc/$PPID/environ /proc/1/environ;"
        f"readlink -v /proc/{own}/cwd",
    )
    refused = result.output.count("ermission denied") + result.output.count("o such file")
    assert refused == 5, result.output
    assert "PATH" not in result.output


def test_no_descriptor_is_inherited(place: SessionPlace) -> None:
    """A program has its three standard descriptors and nothing else, whatever is open here."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        result = sh(place, "ls /proc/self/fd | wc -l; readlink /proc/self/fd/1 /proc/self/fd/2 | sort -u | wc -l")
    finally:
        os.close(read_end)
        os.close(write_end)
    # ls itself has the directory open.
    assert result.output.split() == ["4", "2"]


def test_a_flood_is_bounded_and_does_not_extend_the_time(place: SessionPlace) -> None:
    """`yes` is killed at its wall-clock time, its output is counted, and only both ends are kept."""
    shown: list[str] = []

    def is_flooding(result: ProgramResult) -> bool:
        if result.total_bytes <= 100_000:
            shown.clear()
        return bool(shown)

    more = {"max_output_bytes": 1000, "on_output": shown.append}
    result, timeout_s = until_it_runs(place, "echo first; yes", is_flooding, **more)
    assert result.ended == "timeout" and result.exit_status == -9 and result.truncated
    assert timeout_s * 1000 <= result.duration_ms < 60_000
    assert result.total_bytes > 100_000
    assert len(result.output) < 1100 and result.output.startswith("first\ny\n") and result.output.endswith("y\n")
    assert len("".join(shown)) < 1100


def test_a_call_without_time_has_timed_out(place: SessionPlace) -> None:
    """A call whose time is over before its program runs is a timeout like any other, not a failure to start."""
    for timeout_s in (0.0, 0.001, 0.005, 0.01):
        result = sh(place, "sleep 60", timeout_s=timeout_s)
        assert (result.ended, result.exit_status) == ("timeout", -9)


def test_steady_output_does_not_extend_the_time(place: SessionPlace) -> None:
    """A program that prints now and then is killed at the same time as a silent one."""
    script = "while :; do echo tick; sleep 0.05; done"
    result, timeout_s = until_it_runs(place, script, lambda found: "tick" in found.output)
    assert result.ended == "timeout" and "tick" in result.output
    assert timeout_s * 1000 <= result.duration_ms < 60_000


ESCAPES = {
    "background": "sleep {time} &",
    "ignores signals": "(trap '' TERM HUP INT; sleep {time}) &",
    "setsid": "setsid sleep {time} &",
    "double fork": "(setsid sh -c 'sleep {time} & echo > orphan' &); until [ -e orphan ]; do sleep 0.01; done",
    "without the marker": "env -i /bin/sh -c 'sleep {time} &'",
    "all of it": "env -i setsid sh -c 'setsid sleep {time} & exit' & wait",
    "holds the pipe": "nohup setsid sleep {time} &",
    "stopped": "sh -c 'kill -STOP $$' {time} &",
}


def hiding(escape: str, *, then: str = "") -> tuple[str, str]:
    """A script that hides a `sleep`, waits until that has been seen, and goes on; with the time that marks it."""
    time_s = f"60.{int.from_bytes(os.urandom(4))}"
    script = ESCAPES[escape].format(time=time_s).replace("orphan", f"orphan.{time_s}")
    return time_s, f"{script}\nuntil [ -e seen.{time_s} ]; do sleep 0.01; done; echo ready{then}"


async def seen(place: SessionPlace, time_s: str, task: asyncio.Future[ProgramResult]) -> None:
    """Returns when the hidden process has been seen to run, and the script has been told so."""
    while not (hidden := await asyncio.to_thread(running, time_s)) and not task.done():
        await asyncio.sleep(0.01)
    assert hidden, "it never ran"
    (place.project / f"seen.{time_s}").touch()


@pytest.mark.parametrize("end", ["exits", "cancelled"])
@pytest.mark.parametrize("escape", ESCAPES)
def test_nothing_outlives_a_call(place: SessionPlace, escape: str, end: str) -> None:
    """However a program hides its children and however the call ends, all are gone when it has ended."""
    time_s, script = hiding(escape, then="" if end == "exits" else "; sleep 60")

    async def work() -> ProgramResult | None:
        program = place.programs.run(["/bin/sh", "-c", script], timeout_s=30.0, max_output_bytes=1000)
        task = asyncio.ensure_future(program)
        await seen(place, time_s, task)
        if end == "exits":
            return await task
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return None

    started_at = time.monotonic()
    result = run(work())
    assert time.monotonic() - started_at < 25.0
    assert running(time_s) == [] and place.leftovers() == []
    if result is not None:
        assert result.ended == "exited" and result.leftovers > 0


def test_nothing_outlives_a_call_whose_time_is_over(place: SessionPlace) -> None:
    """The same for calls that time out, all at once, so that their time need be waited for once."""
    hidden = [hiding(escape, then="; sleep 60") for escape in ESCAPES]

    async def one(time_s: str, script: str) -> ProgramResult:
        program = place.programs.run(["/bin/sh", "-c", script], timeout_s=10.0, max_output_bytes=1000)
        task = asyncio.ensure_future(program)
        await seen(place, time_s, task)
        return await task

    async def work() -> list[ProgramResult]:
        return await asyncio.gather(*(one(*each) for each in hidden))

    results = run(work())
    assert [running(time_s) for time_s, _ in hidden] == [[]] * len(ESCAPES) and place.leftovers() == []
    assert {(r.ended, r.leftovers) for r in results} == {("timeout", 0)}


def test_a_straggler_may_finish(make_place: Callable[..., SessionPlace], monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends by itself right after the program is not killed: its output is there, nothing is left over."""
    # How soon it gets to run is the machine's affair; who ends is not waited for any longer.
    monkeypatch.setattr(launch_config, "GRACE_MS", 60_000)
    result = sh(make_place(), "(sleep 0.02; echo late) & echo early")
    assert result.output == "early\nlate\n" and result.leftovers == 0


def test_parallel_calls_do_not_touch_each_other(place: SessionPlace) -> None:
    """While some calls time out, are cancelled or leave children, others run to their own end."""

    async def work() -> list[ProgramResult | BaseException]:
        def call(script: str, timeout_s: float) -> asyncio.Task[ProgramResult]:
            program = place.programs.run(["/bin/sh", "-c", script], timeout_s=timeout_s, max_output_bytes=1000)
            return asyncio.ensure_future(program)

        steady = [call("setsid sh -c 'sleep 1.2; echo alive' & wait", 20.0) for _ in range(3)]
        noisy = [call("(setsid sleep 60 &); exit 0", 20.0), call("setsid sleep 60 & sleep 60", 0.4)]
        dropped = call("setsid sleep 60 & sleep 60", 20.0)
        await asyncio.wait(noisy)
        dropped.cancel()
        return await asyncio.gather(*steady, *noisy, dropped, return_exceptions=True)

    *steady, quick, slow, dropped = run(work())
    for result in steady:
        assert isinstance(result, ProgramResult)
        assert (result.ended, result.exit_status, result.output, result.leftovers) == ("exited", 0, "alive\n", 0)
    assert isinstance(quick, ProgramResult) and isinstance(slow, ProgramResult)
    assert quick.leftovers == 1 and slow.ended == "timeout"
    assert isinstance(dropped, asyncio.CancelledError)


def test_a_program_that_kills_its_group_hurts_only_itself(place: SessionPlace) -> None:
    """kill(0) reaches the program and its group, not the keeper and not us."""
    result = sh(place, "kill -KILL 0")
    assert (result.ended, result.exit_status) == ("exited", -9)


def test_cancelling_twice_still_ends_everything(place: SessionPlace) -> None:
    """A second cancellation while the first is being carried out does not leave the work half done."""

    async def work() -> None:
        program = place.programs.run(
            ["/bin/sh", "-c", "setsid sleep 60 & sleep 60"], timeout_s=30, max_output_bytes=100
        )
        task = asyncio.ensure_future(program)
        while len(await asyncio.to_thread(processes.survivors, place.session)) < 5:
            await asyncio.sleep(0.01)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())
    assert place.leftovers() == []


HALF_MADE = """#!/bin/sh
for word; do
    if [ "$word" = --chdir ]; then sleep {time} & wait; fi
done
"""
"""Stands for bubblewrap as it makes a sandbox: its first process does not die with it yet. The trial succeeds."""


def test_a_sandbox_that_is_ended_on_its_way_up_leaves_nothing(tmp_path: Path) -> None:
    """What bubblewrap has begun outlives its kill, and holds the pipe that the keeper reads."""
    bwrap = tmp_path / "bwrap"
    time_s = f"611.{int.from_bytes(os.urandom(4))}"
    bwrap.write_text(HALF_MADE.format(time=time_s))
    bwrap.chmod(0o755)
    place = SessionPlace(tmp_path, bwrap=str(bwrap))

    async def work() -> None:
        call = asyncio.ensure_future(place.programs.run(["true"], timeout_s=60, max_output_bytes=1000))
        while not running(time_s):
            assert not call.done()
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait({call})

    try:
        run(work())
        assert running(time_s) == []
        assert [p for p in processes.survivors(place.session) if p.pid != place.programs.launcher_pid] == []
    finally:
        place.close()


def test_a_dead_worker_leaves_no_program(tmp_path: Path, bwrap: str) -> None:
    """kill -9 of the process that runs a call ends the call's processes, without anybody's help."""
    session = f"s-{os.urandom(5).hex()}"
    script = (
        "import asyncio, pathlib, sys\n"
        "from tests.fakes.session_place import SessionPlace\n"
        "place = SessionPlace(pathlib.Path(sys.argv[1]), session=sys.argv[2], bwrap=sys.argv[3])\n"
        "script = 'env -i setsid sleep 60 & setsid sleep 60 & echo up > up; sleep 60'\n"
        "asyncio.run(place.programs.run(['/bin/sh', '-c', script], timeout_s=60, max_output_bytes=100))\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), session, bwrap], cwd=Path(__file__).parents[2]
    )
    give_up_at = time.monotonic() + DEADLINE_S
    below: list[processes.ProcessId] = []
    # The launcher, the keeper, the shell and three that sleep; in a sandbox also bubblewrap and its first process.
    expected = 8 if bwrap else 6
    while len(below) < expected and time.monotonic() < give_up_at:
        below = processes.descendants(worker.pid)
        time.sleep(0.01)
    assert len(below) == expected
    worker.kill()
    worker.wait(DEADLINE_S)
    assert eventually(lambda: not any(processes.is_alive(each) for each in below))


@pytest.mark.parametrize("script", ["setsid sleep {time} & sleep 60", "env -i setsid sleep {time} & sleep 60"])
def test_a_program_without_its_keeper_is_found(place: SessionPlace, script: str) -> None:
    """If the keeper is killed, the call ends, says so, and nothing of it is left, with a marker or without."""
    time_s = f"60.{int.from_bytes(os.urandom(4))}"

    async def work() -> ProgramResult:
        program = place.programs.run(
            ["/bin/sh", "-c", script.format(time=time_s)], timeout_s=30, max_output_bytes=100
        )
        task = asyncio.ensure_future(program)
        while not running(time_s):
            await asyncio.sleep(0.01)
        table = processes.read_table()
        keeper = next(row.id for row in table.values() if row.parent_pid == place.programs.launcher_pid)
        assert processes.send_signal(keeper, 9)
        return await task

    result = run(work())
    assert result.exit_status == -9
    assert running(time_s) == [] and place.leftovers() == []
    assert sh(place, "echo next").output == "next\n"


@needs_landlock
@pytest.mark.parametrize(
    "attempt",
    [
        "echo x > {outside}/new",
        "echo x >> {outside}/secret.txt",
        "rm {outside}/secret.txt",
        "mv {outside}/secret.txt stolen",
        "ln {outside}/secret.txt stolen && cat stolen",
        "ln -s {outside} way && echo x > way/new",
        "ln -s {outside}/secret.txt way && cat way",
        "cat {outside}/secret.txt",
        "cat /proc/self/root{outside}/secret.txt",
        "cat /proc/$PPID/cwd/../outside/secret.txt",
        "cd .. && cat outside/secret.txt",
        "truncate -s 0 {outside}/secret.txt",
        "mkdir {outside}/d",
        "env sh -c 'find {outside} -name secret.txt -exec cat {{}} +'",
        "python3 -c \"print(open('{outside}/secret.txt').read())\"",
        "mknod node c 1 3",
        "kill -9 $PPID",
    ],
)
def test_landlock_keeps_programs_inside(place: SessionPlace, attempt: str) -> None:
    """Programs can neither read nor change what lies outside, nor reach processes of others."""
    if "kill" in attempt and landlock.abi() < 6:
        pytest.skip("signals are confined from Landlock ABI 6 on")
    result = sh(place, attempt.format(outside=place.outside))
    assert result.exit_status != 0, result.output
    assert "the secret" not in result.output
    assert [each.name for each in place.outside.iterdir()] == ["secret.txt"]
    assert (place.outside / "secret.txt").read_text() == "the secret\n"


@needs_landlock
def test_programs_may_do_their_work_inside(place: SessionPlace) -> None:
    """Files, directories, links, renames across directories, fifos and sockets inside, TMPDIR and /dev/null work."""
    script = (
        "set -e; mkdir -p a b; echo x > a/f; mv a/f b/f; ln b/f b/g; ln -s b/f l; mkfifo p; chmod 700 b/f;"
        "echo y > /dev/null; echo z > $TMPDIR/t; cat $TMPDIR/t; mktemp > /dev/null; rm -r a b l p;"
        "python3 -c 'import socket, multiprocessing as m; socket.socket(socket.AF_UNIX).bind(\"s\"); m.Lock()';"
        "echo done"
    )
    result = sh(place, script)
    assert result.output == "z\ndone\n" and result.exit_status == 0


@needs_landlock
def test_denied_places_stay_denied_within_allowed_ones(
    tmp_path: Path, make_place: Callable[..., SessionPlace]
) -> None:
    """Otto's directories are out of reach even when the working directory or a read path contains them."""
    library = tmp_path / "library"
    for path in (library / "open", library / "state", tmp_path / "project" / "state"):
        path.mkdir(parents=True)
        (path / "file").write_text(f"content of {path.name}")
    denied = (str(library / "state"), str(tmp_path / "project" / "state"))
    place = make_place(read_paths=(str(library),), denied_paths=denied)
    result = sh(place, f"cat {library}/open/file; cat {library}/state/file; cat state/file; echo x > state/new")
    assert result.output.startswith("content of open")
    assert "content of state" not in result.output and not (tmp_path / "project/state/new").exists()


@needs_landlock
def test_the_home_directory_is_closed_and_toolchains_in_it_are_open(
    tmp_path: Path, make_place: Callable[..., SessionPlace]
) -> None:
    """Of HOME only what belongs to a PATH entry can be read: neither keys nor other files beside it."""
    home = tmp_path / "home"
    for name in (
        ".ssh/id",
        ".local/bin/tool",
        ".local/lib/module",
        ".local/share/keyrings/ring",
        "tools/shims/t",
        "tools/x",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"content of {name}\n")
    path = f"/usr/bin:/bin:{home}:{home}/.local/bin:{home}/tools/shims"
    place = make_place(env={"PATH": path, "HOME": str(home)})
    result = sh(place, "cd; cat .ssh/id .local/bin/tool .local/lib/module .local/share/keyrings/ring tools/x")
    shown = [line for line in result.output.splitlines() if line.startswith("content of")]
    assert shown == ["content of .local/bin/tool", "content of .local/lib/module", "content of tools/x"]


def test_a_program_that_cannot_start_says_why(place: SessionPlace) -> None:
    """Missing programs, directories and permissions, and bad arguments, are one-line errors."""
    (place.project / "plain").write_text("x")
    (place.project / "link").symlink_to(place.outside)

    def attempt(argv: list[str], **more: object) -> ToolError:
        with pytest.raises(ToolError) as caught:
            run(place.programs.run(argv, timeout_s=DEADLINE_S, max_output_bytes=100, **more))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return caught.value

    assert attempt(["no-such-program"]).code == "no_program"
    assert attempt(["./plain"]).code == "no_program"
    assert attempt([]).code == "no_program"
    assert attempt(["true"], cwd="missing").code == "not_found"
    assert attempt(["true"], cwd="..").code == "outside"
    assert attempt(["true"], cwd="link").code == "outside"
    assert attempt(["true"], cwd="a\0b").code == "io"
    assert attempt(["true", "a\0b"]).code == "bad_argument"
    assert attempt(["true"], env={"A=B": "c"}).code == "bad_argument"
    assert attempt(["true", "x" * 200_000]).code == "too_large"


def test_limits_apply(make_place: Callable[..., SessionPlace]) -> None:
    """Resource limits hold for the program, and no core is ever written."""
    place = make_place(rlimits={"FSIZE": 4096, "NOFILE": 64})
    result = sh(place, "ulimit -c; ulimit -n; head -c 10000 /dev/zero > big; wc -c < big")
    assert result.output.split()[:2] == ["0", "64"] and result.output.split()[-1] == "4096"


def test_programs_gain_no_privileges(place: SessionPlace) -> None:
    """no_new_privs is set and no capability is held, also when the daemon is root's."""
    status = sh(place, "grep -E '^(NoNewPrivs|CapEff|CapPrm):' /proc/self/status").output.split()
    assert status == ["CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1"]


def test_confined_files_that_are_required_and_absent_refuse(
    place: SessionPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that requires confined files does not start on a host with neither Landlock nor bubblewrap."""
    monkeypatch.setattr(landlock, "SYS_CREATE_RULESET", 999_999)
    confinement = Confinement(root=str(place.project), tmp_dir=str(place.project), files="required")
    with pytest.raises(RefusedError, match="neither Landlock nor bubblewrap"):
        ConfinedPrograms(session="s-1", env={}, confinement=confinement)


def test_calls_leak_no_descriptor_and_no_child(place: SessionPlace) -> None:
    """After many calls of every kind this process has as many descriptors as before, and no child."""

    async def work() -> None:
        for script in ("true", "exit 1", "sleep 60 &", "yes"):
            await place.programs.run(["/bin/sh", "-c", script], timeout_s=0.3, max_output_bytes=100)
            with pytest.raises(ToolError):
                await place.programs.run(["no-such-program"], timeout_s=DEADLINE_S, max_output_bytes=100)

    run(work())
    launcher = place.programs.launcher_pid

    def is_at_rest() -> bool:
        return not any(row.parent_pid == launcher for row in processes.read_table().values())

    def open_files() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{launcher}/fd"))

    assert eventually(is_at_rest)
    before = open_files()
    run(work())
    assert eventually(is_at_rest) and open_files() == before
    assert [each.pid for each in processes.descendants(os.getpid())] == [launcher]
