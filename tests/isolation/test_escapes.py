"""Ways out of a tool's sandbox that others have found, each tried against the real one."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ottod.errors import ToolError
from ottod.isolation import bubblewrap, landlock, processes, protected
from ottod.isolation.beneath import BeneathFiles
from ottod.protocol.toolio import ProgramResult
from tests.daemon.harness import wait_for
from tests.fakes.session_place import SessionPlace, run

NO_SANDBOX = bubblewrap.trial()
pytestmark = pytest.mark.skipif(bool(NO_SANDBOX), reason=NO_SANDBOX)

Make = Callable[..., SessionPlace]


def sh(place: SessionPlace, script: str, *, timeout_s: float = 30.0, **more: Any) -> ProgramResult:
    return run(place.programs.run(["/bin/sh", "-c", script], timeout_s=timeout_s, max_output_bytes=20_000, **more))


def python(place: SessionPlace, script: str, *arguments: str) -> Any:
    """What a Python program in the sandbox printed as JSON."""
    argv = [os.path.realpath(sys.executable), "-I", "-S", "-c", script, *arguments]
    result = run(place.programs.run(argv, timeout_s=60, max_output_bytes=20_000))
    assert result.exit_status == 0, result.output
    return json.loads(result.output)


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Make]:
    """Makes session places in a sandbox; nothing of their sessions is alive or lies about afterwards."""
    made: list[SessionPlace] = []

    def make(**options: Any) -> SessionPlace:
        made.append(SessionPlace(tmp_path, **options))
        return made[-1]

    yield make
    for place in made:
        place.close()
        assert processes.survivors(place.session) == []
        assert not any(os.path.lexists(place.project / name) for name in (".otto/agents", ".git/hooks/pre-commit"))


@pytest.fixture
def place(make_place: Make) -> SessionPlace:
    return make_place()


def tree(directory: Path) -> dict[str, str]:
    """Every path below, with its kind or content."""
    return {
        str(path.relative_to(directory)): path.read_text() if path.is_file() else "directory"
        for path in sorted(directory.rglob("*"))
    }


# ---------------------------------------------------------------- paths that are obeyed outside


ATTEMPTS_ON_NOTHING = [
    "mkdir -p .otto/agents && echo x > .otto/agents/evil.yml",
    "mkdir -p .otto/agents/",
    "echo x > .otto",
    "ln -s ../outside .otto",
    "mv .otto gone; mkdir .otto && echo x > .otto/file",
    "rmdir .otto; rm -rf .otto; mkdir .otto && echo x > .otto/file",
    "mkdir -p .git/hooks && echo x > .git/hooks/pre-commit",
    "git init . && echo x > .git/hooks/pre-commit",
    "mv .git gone; mkdir -p .git/hooks && echo x > .git/hooks/pre-commit",
    "mkdir evil && mv -T evil .git",
    'python3 -c \'import os; os.mkdir("e"); os.rename("e", ".otto")\'',
]


@pytest.mark.parametrize("attempt", ATTEMPTS_ON_NOTHING)
def test_what_does_not_exist_yet_cannot_be_made(place: SessionPlace, attempt: str) -> None:
    """Policy and hooks that are not there stay not there, in the call, for the next one, and after the session."""
    sh(place, attempt)
    second = sh(place, "find .otto .git -mindepth 1; echo end")
    assert second.output == "end\n"
    place.close()
    assert not os.path.lexists(place.project / ".otto") and not os.path.lexists(place.project / ".git")


def repository(directory: Path) -> None:
    """What matters of a repository, with hooks in it."""
    for name in ("hooks", "objects", "refs/heads", "modules/lib/hooks", "worktrees/other"):
        (directory / ".git" / name).mkdir(parents=True)
    for name in ("config", "HEAD", "modules/lib/HEAD", "modules/lib/config", "worktrees/other/gitdir"):
        (directory / ".git" / name).write_text("as it was\n")


def guarded(git: Path) -> dict[str, str]:
    """The part of a repository that is run or obeyed."""
    places = ("hooks", "config", "commondir", "modules/lib/hooks", "modules/lib/config", "worktrees")
    return {path: text for path, text in tree(git).items() if path.startswith(places)}


ATTEMPTS_ON_REPOSITORY = [
    "echo x > {git}/hooks/pre-commit",
    "echo x > {git}/hooks/./../hooks/pre-commit",
    "echo x >> {git}/config",
    "rm -f {git}/config; echo x > {git}/config",
    "echo x > c; mv c {git}/config",
    "cp -r {git} copy && rm -rf {git}; mv copy {git} && echo x > {git}/hooks/pre-commit",
    "mv {git} moved && cp -r moved {git} && echo x > {git}/hooks/pre-commit",
    "mv {git}/hooks {git}/old && mkdir {git}/hooks",
    "rm -rf {git}/hooks; ln -s ../.. {git}/hooks",
    "chmod 777 {git}/hooks; echo x > /proc/self/root$PWD/{git}/hooks/pre-commit",
    "echo x > {git}/modules/lib/hooks/post-checkout",
    "echo x > {git}/modules/lib/config",
    "echo ../../evil > {git}/worktrees/other/commondir",
    "ln {git}/config hard && echo x >> hard",
]


@pytest.mark.parametrize("where", ["", "packages/deep/"])
@pytest.mark.parametrize("attempt", ATTEMPTS_ON_REPOSITORY)
def test_a_repository_runs_nothing_new(tmp_path: Path, make_place: Make, attempt: str, where: str) -> None:
    """Hooks and configuration of every repository that is there stay as they are, nested ones and submodules too."""
    project = tmp_path / "project"
    repository(project / where)
    place = make_place()
    before = guarded(project / where / ".git")
    sh(place, attempt.format(git=f"{where}.git"))
    assert guarded(project / where / ".git") == before
    place.close()
    assert guarded(project / where / ".git") == before


def test_git_itself_works_in_the_sandbox(tmp_path: Path, make_place: Make) -> None:
    """Objects, references and the index of a protected repository can be written: status, add, commit, branch."""
    project = tmp_path / "project"
    project.mkdir()
    identity = "git -c user.name=n -c user.email=e@example.org -c core.hooksPath=/dev/null"
    assert os.system(f"cd {project} && git init -q . && {identity} commit -q --allow-empty -m first") == 0
    place = make_place()
    script = (
        f"echo x > file && git add file && {identity} commit -q -m second && git branch other && git log --oneline"
    )
    result = sh(place, script)
    assert result.exit_status == 0 and len(result.output.splitlines()) == 2, result.output


@pytest.mark.parametrize("name", ["commondir", "config.worktree"])
def test_git_cannot_be_sent_elsewhere(tmp_path: Path, make_place: Make, name: str) -> None:
    """A file that would make git read another configuration is gone when the call is over, and the result says so."""
    repository(tmp_path / "project")
    place = make_place()
    result = sh(place, f"echo ../evil > .git/{name}")
    assert not (tmp_path / "project/.git" / name).exists()
    assert "which programs may not" in result.output
    result = sh(place, f"mkdir .git/{name}; echo x > .git/{name}/x")
    assert not (tmp_path / "project/.git" / name).exists()


def test_a_symlink_in_a_protected_place_is_kept_and_not_followed(tmp_path: Path, make_place: Make) -> None:
    """Where `.otto` is a symlink, it leads where it led, and nothing is made or mounted at its other end."""
    project, policy = tmp_path / "project", tmp_path / "policy"
    project.mkdir()
    policy.mkdir()
    (project / ".otto").symlink_to(policy)
    place = make_place()
    result = sh(place, "rm .otto && mkdir -p .otto/agents && echo x > .otto/agents/evil.yml")
    assert os.readlink(project / ".otto") == str(policy) and list(policy.iterdir()) == []
    assert "which programs may not" in result.output


@pytest.mark.parametrize(
    "target", ["{outside}", "../outside", "../../../../../../oldroot{outside}", "/oldroot{outside}"]
)
def test_a_symlink_left_by_one_call_is_no_way_out_for_the_next(place: SessionPlace, target: str) -> None:
    """Repositories that are symlinks to elsewhere, made inside, are not followed when the next sandbox is made."""
    target = target.format(outside=place.outside)
    sh(place, f"mkdir -p a b/.git; ln -s {target} a/.git; ln -s {target} b/.git/hooks; ln -s {target} way")
    place.close()
    another = SessionPlace(place.project.parent)
    try:
        assert sh(another, "echo x > way/new; echo x > a/.git/new; echo fine").output.endswith("fine\n")
    finally:
        another.close()
    assert [each.name for each in place.outside.iterdir()] == ["secret.txt"]
    files = BeneathFiles(str(place.project))
    with pytest.raises(ToolError):
        files.write("way/new", b"x")
    files.close()


def links_too(directory: Path) -> dict[str, str]:
    """Every path below, with where it points or what it contains; symlinks are not followed."""
    return {
        str(path.relative_to(directory)): f"-> {os.readlink(path)}"
        if path.is_symlink()
        else (path.read_text() if path.is_file() else "directory")
        for path in sorted(directory.rglob("*"))
    }


def foreign_repository(place: SessionPlace) -> Path:
    """A repository of the user's that the session has nothing to do with, with every file a keeper may mend."""
    victim = place.outside / "victim"
    (victim / ".git" / "hooks").mkdir(parents=True)
    for name in ("HEAD", "config", "commondir", "config.worktree"):
        (victim / ".git" / name).write_text("the user's own\n")
    return victim


WATCHED = [".git", ".git/config", ".git/commondir", ".git/config.worktree"]


def watched(work_tree: Path, name: str, *, target: str) -> None:
    """A work tree in which a keeper watches `name`: a symlink to `target`, or absent without one."""
    (work_tree / ".git/hooks" if name != ".git" else work_tree).mkdir(parents=True)
    if target:
        (work_tree / name).symlink_to(target)


@pytest.mark.parametrize("where", ["sub", "packages/deep/sub"])
@pytest.mark.parametrize(
    ("name", "is_link"), [(".git", True), *((name, is_link) for name in WATCHED[1:] for is_link in (True, False))]
)
def test_a_swapped_parent_leads_the_keeper_nowhere(place: SessionPlace, name: str, is_link: bool, where: str) -> None:
    """Where a directory became a symlink to a foreign repository, nothing in that one is removed, moved or made."""
    (place.project / "evil").mkdir()
    watched(place.project / where, name, target=str(place.project / "evil") if is_link else "")
    victim = foreign_repository(place)
    if is_link and name != ".git":
        (victim / name).unlink()
    before = links_too(victim)
    result = sh(place, f"mv {where} gone && ln -s {victim} {where}")
    assert result.exit_status == 0, result.output
    assert links_too(victim) == before
    sh(place, "true")
    assert links_too(victim) == before
    place.close()
    assert links_too(victim) == before


@pytest.mark.parametrize("name", WATCHED[1:])
def test_what_was_made_in_a_moved_repository_is_undone_there(place: SessionPlace, name: str) -> None:
    """A repository that was moved away in the same call, and closed by its mode, is mended where it is now."""
    watched(place.project / "sub", name, target="")
    result = sh(place, f"mv sub gone && echo evil > gone/{name} && chmod 0 gone/.git && mkdir sub")
    assert result.exit_status == 0, result.output
    assert f"{place.project}/gone/{name} was made or changed" in result.output
    (place.project / "gone/.git").chmod(0o755)
    assert not (place.project / "gone" / name).exists()


_SWAP = """
import os, sys, time
os.mkdir("ready")
give_up_at = time.monotonic() + 50
while not os.path.lexists("stop") and time.monotonic() < give_up_at:
    os.rename("sub", "gone")
    os.symlink(sys.argv[1], "sub")
    time.sleep(0.002)
    os.unlink("sub")
    os.rename("gone", "sub")
    time.sleep(0.002)
"""
SWAPPED_CALLS = 40


def test_a_parent_that_is_swapped_all_the_time_is_no_way_out(place: SessionPlace) -> None:
    """While one call swaps a directory for a symlink without end, other calls begin and end, and change nothing."""
    import asyncio

    (place.project / "evil").mkdir()
    watched(place.project / "sub", ".git", target=str(place.project / "evil"))
    victim = foreign_repository(place)
    before = links_too(victim)
    refused = []

    async def work() -> None:
        argv = [os.path.realpath(sys.executable), "-I", "-S", "-c", _SWAP, str(victim)]
        swap = asyncio.create_task(place.programs.run(argv, timeout_s=60, max_output_bytes=2000))
        while not (place.project / "ready").exists() and not swap.done():
            await asyncio.sleep(0.01)
        for _ in range(SWAPPED_CALLS):
            try:
                await place.programs.run(["/bin/true"], timeout_s=60, max_output_bytes=100)
            except ToolError as error:
                refused.append(error.code)  # The tree changed while its sandbox was made.
        (place.project / "stop").touch()
        result = await swap
        assert result.exit_status == 0, result.output

    run(work())
    assert set(refused) <= {"not_started"} and len(refused) < SWAPPED_CALLS
    assert links_too(victim) == before


@pytest.mark.parametrize(
    "hide",
    [
        "cp -r sub decoy; mkdir real; mv sub real/sub; mv decoy sub",
        "mkdir -p real node_modules; mv sub node_modules/sub; ln -s ../node_modules/sub real/sub",
        "mkdir -p real; mv sub real/sub; mkdir $(seq -f many-%g 3100)",
        "mkdir -p real; mv sub real/sub; mkdir real/sub/.git/x; mv real/sub/.git/modules/lib real/sub/.git/x/lib",
    ],
)
def test_a_repository_that_was_moved_stays_protected(place: SessionPlace, hide: str) -> None:
    """Neither a decoy in its place, nor a directory that is not searched, nor too many of them hide a repository."""
    repository(place.project / "sub")
    assert sh(place, hide).exit_status == 0
    lib = "real/sub/.git/x/lib" if "x/lib" in hide else "real/sub/.git/modules/lib"
    before = guarded(place.project / "real/sub/.git")
    assert (place.project / lib / "config").exists()
    sh(place, f"for d in real/sub/.git {lib}; do echo x > $d/hooks/pre-commit; echo x >> $d/config; done")
    assert guarded(place.project / "real/sub/.git") == before
    assert not (place.project / lib / "hooks/pre-commit").exists()
    assert (place.project / lib / "config").read_text() == "as it was\n"


@pytest.mark.parametrize("where", ["sub", "sub/.git", "sub/.git/modules", "sub/.git/modules/lib"])
def test_what_is_closed_cannot_be_opened_by_the_next_call(place: SessionPlace, where: str) -> None:
    """A repository that nobody can look into when a call begins is read-only in it, mode and all."""
    if os.geteuid() == 0:
        pytest.skip("root looks into everything")
    repository(place.project / "sub")
    closed = place.project / where
    closed.chmod(0)
    sh(place, f"chmod 755 {where}; echo x > sub/.git/hooks/pre-commit; echo x > sub/.git/modules/lib/hooks/pre-push")
    closed.chmod(0o755)
    assert not (place.project / "sub/.git/hooks/pre-commit").exists()
    assert not (place.project / "sub/.git/modules/lib/hooks/pre-push").exists()


def test_a_working_directory_that_was_swapped_is_not_followed(place: SessionPlace) -> None:
    """A symlink in place of the working directory itself, left by somebody else's tool, gives programs nothing."""
    sh(place, "true")
    moved = place.project.with_name("moved")
    place.project.rename(moved)
    place.project.symlink_to(place.outside)
    with pytest.raises(ToolError):
        sh(place, "echo x > new")
    assert [each.name for each in place.outside.iterdir()] == ["secret.txt"]
    place.project.unlink()
    moved.rename(place.project)
    assert sh(place, "echo fine").output == "fine\n"


def test_a_bubblewrap_without_descriptors_protects_as_well(tmp_path: Path, make_place: Make) -> None:
    """Older ones mount by path only: what is protected is, though a rename at that moment may fail the call."""
    old = tmp_path / "old-bwrap"
    old.write_text(
        '#!/bin/sh\nfor a in "$@"; do case $a in --*bind-fd) echo "Unknown option $a" >&2; exit 1;; esac; done\n'
        f'exec {bubblewrap.find()} "$@"\n'
    )
    old.chmod(0o755)
    place = make_place(bwrap=str(old))
    repository(place.project / "sub")
    before = guarded(place.project / "sub/.git")
    result = sh(place, "echo x > sub/.git/hooks/pre-commit; mkdir .otto/agents; ls -d /sys; echo end")
    assert "/sys\n" not in result.output.replace("'/sys'", "") and result.output.endswith("end\n")
    assert guarded(place.project / "sub/.git") == before and list((place.project / ".otto").iterdir()) == []


def test_a_forged_placeholder_does_not_hold_the_launcher(tmp_path: Path) -> None:
    """A program that marks and locks an empty directory of its own keeps nobody waiting."""
    hooks = tmp_path / "sub/.git/hooks"
    hooks.mkdir(parents=True)
    try:
        os.setxattr(hooks, protected.MARK, b"1")
    except OSError:
        pytest.skip("no extended attributes here")
    lock = os.open(hooks, os.O_RDONLY)
    protection = protected.Protection(str(tmp_path))
    look = threading.Thread(target=protection.refresh, daemon=True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        look.start()
        look.join(30)
        assert not look.is_alive()
        assert str(hooks) in protection.arguments()
    finally:
        os.close(lock)
    protection.release()
    assert hooks.is_dir() and not (tmp_path / ".otto").exists()


def test_placeholders_of_the_dead_can_be_taken_away(make_place: Make) -> None:
    """Whoever buries a session removes what its launcher has left, and nothing that another still holds."""
    first, second = make_place(), make_place()
    for each in (first, second):
        sh(each, "true")
    os.kill(first.programs.launcher_pid, 9)
    first.close()
    protected.release_stale(str(first.project))
    assert (second.project / ".otto").is_dir() and (second.project / ".git").is_dir()
    os.kill(second.programs.launcher_pid, 9)
    second.close()
    try:
        is_marked = os.getxattr(first.project / ".otto", protected.MARK) == b"1"
    except OSError:
        is_marked = False

    def is_clean() -> bool:
        protected.release_stale(str(first.project))  # Keepers on their way out have a part in the lock.
        return not list(first.project.iterdir())

    if is_marked:
        wait_for("no placeholder is left", is_clean)
    protected.release_stale(str(first.project / "missing"))


def test_placeholders_are_shared_and_go_with_the_last(make_place: Make) -> None:
    """Two sessions in one directory: the first to end leaves the protection of the other alone."""
    one, two = make_place(), make_place()
    for each in (one, two):
        assert sh(each, "echo up").output == "up\n"
    one.close()
    sh(two, "mkdir -p .otto/agents; mkdir -p .git/hooks")
    assert sh(two, "find .otto .git -mindepth 1; echo end").output == "end\n"
    assert os.path.isdir(two.project / ".otto")
    two.close()
    assert list(two.project.iterdir()) == []


def test_what_a_user_puts_into_a_placeholder_stays(place: SessionPlace) -> None:
    """A user who makes `.otto/agents` while a session runs keeps it, and programs still cannot write it."""
    sh(place, "true")
    (place.project / ".otto" / "agents").mkdir()
    (place.project / ".otto" / "agents" / "mine.yml").write_text("name: mine\n")
    sh(place, "echo x >> .otto/agents/mine.yml; echo x > .otto/agents/more.yml")
    place.close()
    assert tree(place.project) == {
        ".otto": "directory",
        ".otto/agents": "directory",
        ".otto/agents/mine.yml": "name: mine\n",
    }
    (place.project / ".otto" / "agents" / "mine.yml").unlink()
    (place.project / ".otto" / "agents").rmdir()


def test_a_placeholder_that_was_left_is_taken_away(make_place: Make) -> None:
    """After a kill -9 of the launcher an empty directory may lie about; the next session removes it."""
    first = make_place()
    sh(first, "true")
    os.kill(first.programs.launcher_pid, 9)
    first.close()
    assert os.path.isdir(first.project / ".otto")
    try:
        is_marked = os.getxattr(first.project / ".otto", protected.MARK) == b"1"
    except OSError:
        is_marked = False
    second = make_place()
    sh(second, "true")
    second.close()
    assert os.path.isdir(second.project / ".otto") == (not is_marked)


def test_a_granted_repository_may_be_made(make_place: Make, tmp_path: Path) -> None:
    """Who wants an agent to make a repository says so: a write path that names `.git` lifts its protection."""
    place = make_place(write_paths=(str(tmp_path / "project" / ".git"),))
    assert sh(place, "git init -q . && echo x > .git/hooks/pre-push").exit_status == 0
    assert (place.project / ".git/hooks/pre-push").exists()


@pytest.mark.parametrize(
    "path", [".otto/agents/x.yml", ".git/hooks/pre-commit", "sub/.git/config", ".GIT/hooks/x", "way/x"]
)
def test_file_tools_do_not_write_what_is_protected(place: SessionPlace, path: str) -> None:
    """The tools that write files in the worker refuse as well, with a mend, and make no directory on the way."""
    (place.project / ".git").mkdir()
    (place.project / "way").symlink_to(".git")
    with pytest.raises(ToolError, match="protected") as caught:
        place.files.write(path, b"x")
    assert caught.value.code == "protected"
    assert tree(place.project) == {".git": "directory", "way": "directory"}
    (place.project / ".git").rmdir()


def test_a_trailing_slash_changes_nothing(place: SessionPlace) -> None:
    """Neither a program nor a file tool gets past a rule by the form of a path."""
    assert "the secret" not in sh(place, f"cat {place.outside}/secret.txt/ {place.outside}//secret.txt").output
    for path in (".git/hooks/", ".git/", ".otto//x", "./.otto/./x", "a/../.otto/x"):
        with pytest.raises(ToolError):
            place.files.write(path, b"x")
    place.close()
    assert list(place.project.iterdir()) == []


# ---------------------------------------------------------------- what there is to see


def test_only_what_was_granted_exists(make_place: Make, tmp_path: Path) -> None:
    """No /sys, no home but an empty one, no host /tmp, no host /run, and Otto's directories do not exist."""
    (tmp_path / "state").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes").write_text("private")
    place = make_place(denied_paths=(str(tmp_path / "state"),))
    result = sh(
        place,
        f"ls -d /sys /boot /root/.ssh /run/user /var/log {tmp_path}/state {place.outside};"
        f"ls -A {tmp_path}/home; ls /tmp; echo $TMPDIR; echo end",
    )
    # The place itself is below /tmp here, and so may be the interpreter that programs may use.
    known = {path.parts[2] for path in (tmp_path, Path(sys.prefix), Path(sys.base_prefix)) if path.parts[1] == "tmp"}
    shown = [line for line in result.output.splitlines() if "No such file" not in line and line not in known]
    assert shown == ["/tmp", "end"]
    assert result.output.count("No such file") == 7


def test_the_system_cannot_be_written(place: SessionPlace) -> None:
    """Neither the system's directories nor the root that they are mounted on."""
    places = "/ /usr /usr/bin /etc /opt /home /proc /dev/pts"
    script = f"for d in {places}; do (echo x > $d/otto-was-here) 2> /dev/null && echo $d; done; echo end"
    assert sh(place, script).output == "end\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mode bits protect these from everybody but root")
def test_secrets_of_root_are_masked(place: SessionPlace) -> None:
    """A daemon of root's has tools that cannot read the shadow file."""
    assert sh(place, "cat /etc/shadow /etc/sudoers.d/* /etc/ssh/*key 2>/dev/null | wc -c").output.strip() == "0"


def test_other_processes_cannot_be_seen(place: SessionPlace) -> None:
    """The process table holds the call's own processes: not this one, not root, not the keeper."""
    own = os.getpid()
    result = sh(
        place, f"ls /proc | grep -c '^[0-9]'; cat /proc/{own}/cmdline; kill -0 {own}; tr '\\0' ' ' < /proc/1/cmdline"
    )
    count, *rest = result.output.splitlines()
    assert int(count) <= 5
    assert "pytest" not in result.output and len([line for line in rest if "o such" in line]) >= 1


def test_the_first_process_is_out_of_reach(place: SessionPlace) -> None:
    """Process 1 of the sandbox can be neither killed nor opened by the program that it keeps."""
    result = sh(
        place,
        "kill -9 1; kill -STOP 1; cat /proc/1/environ /proc/1/maps; ls -l /proc/1/fd/ | grep -c '>'; echo alive",
    )
    assert result.output.splitlines()[-2:] == ["0", "alive"]
    assert (result.ended, result.exit_status) == ("exited", 0)


def test_the_root_of_another_process_is_the_same_root(place: SessionPlace) -> None:
    """/proc/PID/root and /proc/PID/cwd lead nowhere that was not there already."""
    secret = f"{place.outside}/secret.txt"
    script = f"for p in self 1 $PPID $$; do cat /proc/$p/root{secret} /proc/$p/cwd/../outside/secret.txt; done"
    assert "the secret" not in sh(place, script).output


# ---------------------------------------------------------------- sockets


_CONNECT = """
import json, socket, sys
found = {}
for name, family, address in (
    ("abstract", socket.AF_UNIX, "\\0" + sys.argv[1]), ("path", socket.AF_UNIX, sys.argv[2]),
    ("tcp", socket.AF_INET, ("127.0.0.1", int(sys.argv[3]))),
):
    with socket.socket(family) as client:
        client.settimeout(5)
        try:
            client.connect(address)
            found[name] = "connected"
        except OSError as error:
            found[name] = type(error).__name__
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), timeout=5).close()
print(json.dumps(found))
"""


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[tuple[str, str, str]]:
    """An abstract unix socket, one with a path, and a TCP port of the host."""
    name = f"otto-{os.urandom(6).hex()}"
    abstract, path, tcp = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.socket()
    with abstract, path, tcp:
        abstract.bind("\0" + name)
        path.bind(str(tmp_path / "listener"))
        tcp.bind(("127.0.0.1", 0))
        for each in (abstract, path, tcp):
            each.listen()
        yield name, str(tmp_path / "listener"), str(tcp.getsockname()[1])


def test_no_socket_of_the_host_can_be_reached(place: SessionPlace, listeners: tuple[str, str, str]) -> None:
    """Neither abstract names, nor paths, nor ports of this machine; a loopback of its own works."""
    assert python(place, _CONNECT, *listeners) == {
        "abstract": "ConnectionRefusedError",
        "path": "FileNotFoundError",
        "tcp": "ConnectionRefusedError",
    }


def test_the_hosts_network_is_given_when_asked_for(make_place: Make, listeners: tuple[str, str, str]) -> None:
    """`network: off` opens the network, and nothing beside it: unix sockets stay closed."""
    found = python(make_place(network="off"), _CONNECT, *listeners)
    assert found["tcp"] == "connected" and found["path"] == "FileNotFoundError"
    if landlock.abi() >= 6:
        assert found["abstract"] == "PermissionError"


def test_an_inherited_unix_socket_stays_behind(place: SessionPlace) -> None:
    """A connected unix socket that is inheritable here is not there."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.set_inheritable(True)
        place_again = SessionPlace(place.project.parent)  # Its launcher is started while the socket is open.
        try:
            result = sh(place_again, "ls -l /proc/self/fd; find -L /proc/self/fd/ -type s")
        finally:
            place_again.close()
    assert "socket" not in result.output and result.output.count("->") == 4


_SYSCALLS = """
import ctypes, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
found = {}
def call(name, number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in arguments))
    found[name] = result if result < 0 else 0
call("io_uring_setup", 425, 1, 0)
found["unshare"] = libc.unshare(0x10000000)
found["mount"] = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
found["umount"] = libc.umount2(b"/proc", 2)
found["setns"] = libc.setns(os.open("/proc/self/ns/mnt", os.O_RDONLY), 0)
found["chroot"] = libc.chroot(b"/tmp")
for name, family in (("vsock", 40), ("packet", 17), ("alg", 38)):
    try:
        socket.socket(family, socket.SOCK_STREAM if family == 40 else socket.SOCK_DGRAM)
        found[name] = 0
    except OSError:
        found[name] = -1
child = os.fork()
if child == 0:
    os._exit(0 if libc.ptrace(0, 0, 0, 0) == 0 else 1)
print(json.dumps({"refused": found, "debugging": os.waitpid(child, 0)[1] == 0}))
"""


def test_system_calls_that_attacks_begin_with_are_refused(place: SessionPlace) -> None:
    """io_uring, namespaces, mounts and odd sockets fail in a real call; a debugger works among the call's own."""
    found = python(place, _SYSCALLS)
    assert set(found["refused"].values()) == {-1}, found
    assert found["debugging"]


def test_system_calls_are_filtered_without_a_sandbox_as_well(make_place: Make) -> None:
    """Without bubblewrap the filter still holds, and there nobody may debug: other processes are in sight."""
    found = python(make_place(bwrap=""), _SYSCALLS)
    assert set(found["refused"].values()) == {-1}, found
    assert not found["debugging"]
    assert sh(make_place(syscalls="off"), "grep Seccomp: /proc/self/status").output.split() == ["Seccomp:", "0"]


def test_a_keyring_cannot_be_used(place: SessionPlace) -> None:
    """Keys of the user's session cannot be listed or asked for."""
    script = (
        "import ctypes, json, os; libc = ctypes.CDLL(None)\n"
        "keyctl, add_key = {'x86_64': (250, 248), 'aarch64': (219, 217)}[os.uname().machine]\n"
        "print(json.dumps([libc.syscall(keyctl, 0, -3, 0), libc.syscall(add_key, b'user', b'k', b'v', 1, -3)]))"
    )
    assert python(place, script) == [-1, -1]


# ---------------------------------------------------------------- resources and layers


_BOMB = """
import json, os, sys, time
children = 0
for _ in range(int(sys.argv[1])):
    try:
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
        children += 1
    except BlockingIOError:
        break
print(json.dumps(children), flush=True)
if len(sys.argv) > 2:
    time.sleep(600)
"""


def test_a_fork_bomb_stays_in_its_call(make_place: Make) -> None:
    """A call has a limit of processes of its own (root's are not counted by the kernel), and all of them end."""
    place = make_place(pids=40)
    argv = [os.path.realpath(sys.executable), "-I", "-S", "-c", _BOMB, "150", "stay"]
    # So many forks take a busy machine its time.
    for timeout_s in (5, 40):
        result = run(place.programs.run(argv, timeout_s=timeout_s, max_output_bytes=1000))
        if result.output:
            break
    assert result.ended == "timeout"
    assert 20 <= int(result.output) <= 150
    if os.geteuid() != 0:
        assert int(result.output) < 40
    assert place.leftovers() == []
    assert sh(place, "echo fine").output == "fine\n"


def test_many_children_that_outlive_a_call_are_counted(place: SessionPlace) -> None:
    """What a program leaves behind is killed with its namespace, and the result says how many."""
    result = sh(place, "for i in $(seq 30); do setsid sleep 600 & done; exit 0")
    assert (result.ended, result.exit_status, result.leftovers) == ("exited", 0, 30)


def test_a_required_network_that_cannot_be_given_refuses_every_call(make_place: Make) -> None:
    """Without bubblewrap a session that requires a network of its own runs no program at all."""
    place = make_place(bwrap="", network="required")
    with pytest.raises(ToolError, match="requires a network of its own") as caught:
        sh(place, "echo x")
    assert caught.value.code == "isolation_unavailable"
    broken = make_place(bwrap="/bin/false", network="required")
    with pytest.raises(ToolError, match="requires a network of its own"):
        sh(broken, "echo x")


def test_a_broken_bubblewrap_is_done_without(make_place: Make) -> None:
    """If the trial fails, programs run under Landlock as on a host without bubblewrap."""
    place = make_place(bwrap="/bin/false")
    assert sh(place, "echo x; ls -d /sys").output == "x\n/sys\n"


def test_open_files_still_hide_the_daemon(make_place: Make, tmp_path: Path) -> None:
    """`files: off` opens the file system but for Otto's own directories; the session's TMPDIR in them works."""
    state = tmp_path / "state"
    (state / "other").mkdir(parents=True)
    (state / "token").write_text("the token")
    place = make_place(files="off", denied_paths=(str(state),))
    result = sh(
        place, f"cat {place.outside}/secret.txt {state}/token; ls {state}; echo y > $TMPDIR/x && cat $TMPDIR/x"
    )
    assert "the secret" in result.output and "the token" not in result.output and "other" not in result.output
    assert result.output.endswith("y\n")


def test_calls_at_once_do_not_disturb_each_other(place: SessionPlace) -> None:
    """Ten sandboxes at a time of one session, each with its own process table."""
    results: list[ProgramResult] = []

    async def work() -> None:
        import asyncio

        calls = [
            place.programs.run(["/bin/sh", "-c", "ls /proc | grep -c '^[0-9]'"], timeout_s=60, max_output_bytes=100)
            for _ in range(10)
        ]
        results.extend(await asyncio.gather(*calls))

    run(work())
    assert [each.exit_status for each in results] == [0] * 10
    assert all(int(each.output) <= 4 for each in results)
    assert threading.active_count() < 50
