"""Commits on a branch that nobody stands on, made with real git."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ottod.errors import ToolError
from ottod.protocol.toolio import ProgramResult
from ottod.sinks.base import Parcel, Receipt, Undelivered
from ottod.sinks.git_branch import GitBranch
from ottod.worker.workflow_diff import WorkingTree
from tests.sinks.parcels import parcel

BRANCH = "otto/s-7777777777"


class Repository:
    """A real one. `on_call` is done before each call of git by the sink."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.on_call = lambda arguments: None
        self("init", "-q", "-b", "trunk")

    def __call__(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        settings = ("user.name=u", "user.email=u@example.org", "core.quotePath=true")
        words = ["git", *(word for each in settings for word in ("-c", each)), *arguments]
        done = subprocess.run(
            words,
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            env={**os.environ, **(env or {})},
            check=False,
        )
        if done.returncode:
            raise ToolError(done.stderr.decode(), code="git")
        return done.stdout.decode()

    async def git(self, arguments: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        self.on_call(arguments)
        return self(*arguments, stdin=stdin, env=env)

    def tree(self, content: str) -> str:
        """A tree object with one file of this content; nothing else changes."""
        blob = self("hash-object", "-w", "--stdin", stdin=content.encode()).strip()
        return self("mktree", stdin=f"100644 blob {blob}\tfile\n".encode()).strip()

    def state(self) -> str:
        """The working directory, as a workflow notes it."""
        return asyncio.run(WorkingTree(self).state())

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None, **bounds: Any
    ) -> ProgramResult:
        """`Programs`, without a sandbox."""
        words = {"cwd": self.directory, "input": stdin, "env": {**os.environ, **(env or {})}}
        done = await asyncio.to_thread(
            subprocess.run, argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **words
        )
        output = done.stdout.decode(errors="replace")
        return ProgramResult(
            ended="exited", exit_status=done.returncode, output=output, truncated=False, total_bytes=0, duration_ms=0
        )

    def receipt(self, one: Parcel) -> Receipt:
        return asyncio.run(GitBranch(self.git, graft=WorkingTree(self).graft).deliver(one))  # type: ignore[arg-type]

    def deliver(self, one: Parcel) -> str:
        return self.receipt(one).place

    def prune(self) -> None:
        """What nothing names is gone, as it is some weeks later."""
        self("prune", "--expire=now")

    def changed(self, commit: str) -> list[str]:
        return self("show", "--name-status", "--no-renames", "--format=", commit).split("\n")[:-1]

    def write(self, **files: str) -> None:
        """Files by their names; `_` stands for a slash, an empty content for none."""
        for name, content in files.items():
            path = self.directory / name.replace("_", "/")
            if not content:
                path.unlink()
                continue
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)

    def count(self) -> int:
        return int(self("rev-list", "--count", BRANCH))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def changed_to(repository: Repository, content: str, *, version: int = 1) -> Parcel:
    """Of a step that gave the one file this content; there was nothing before."""
    return replace(parcel(version=version, tree=repository.tree(content)), before=repository("mktree").strip())


def test_a_step_is_committed_once(repository: Repository) -> None:
    """Also into a repository without a commit; the same delivery again finds its commit, wherever the tip is."""
    one = changed_to(repository, "1")
    two = changed_to(repository, "2", version=2)
    place = repository.deliver(one)
    assert repository.deliver(one) == place and repository.count() == 1
    repository.deliver(two)
    assert repository.deliver(one) == place and repository.count() == 2
    assert repository("show", f"{BRANCH}:file") == "2"
    (commit,) = {repository("rev-parse", f"{BRANCH}~1").strip()}
    repository("update-ref", "-d", f"refs/heads/{BRANCH}")
    repository.deliver(one)
    assert repository("rev-parse", BRANCH).strip() == commit, "a commit's id follows from the journal"


def test_what_changed_nothing_and_left_nothing_is_no_commit(repository: Repository) -> None:
    repository.deliver(changed_to(repository, "1"))
    tree = repository.tree("1")
    empty = Parcel(key="k", workflow="fix", session="s-7777777777", path="idle", attempt=1, at_ns=0, tree=tree)
    assert repository.deliver(empty) == "" and repository.count() == 1


def test_a_branch_that_somebody_moves_or_stands_on(repository: Repository) -> None:
    """Moved meanwhile: what is there stays, and the commit comes on top. Checked out: it is left alone."""
    repository.deliver(changed_to(repository, "1"))
    moved = []

    def move(arguments: Sequence[str]) -> None:
        if arguments[0] == "update-ref" and not moved:
            other = repository("commit-tree", repository.tree("x"), "-p", BRANCH, "-m", "theirs").strip()
            moved.append(other)
            repository("update-ref", f"refs/heads/{BRANCH}", other)

    repository.on_call = move
    repository.deliver(changed_to(repository, "2", version=2))
    assert repository.count() == 3 and repository("rev-parse", f"{BRANCH}~1").strip() == moved[0]
    repository("checkout", "-q", BRANCH)
    with pytest.raises(Undelivered, match="checked out") as caught:
        repository.deliver(changed_to(repository, "3", version=3))
    assert not caught.value.is_final and repository.count() == 3
    assert not repository("status", "--porcelain")


class Steps:
    """The steps of one workflow, delivered in order unless they are held back."""

    def __init__(self, repository: Repository, session: str = "s-7777777777", **fields: Any) -> None:
        self.repository = repository
        self.count = 0
        self.fields = {"before": repository.state(), "session": session, **fields}

    def step(self, **files: str) -> Parcel:
        """Changes files; what a sink is then given."""
        self.repository.write(**files)
        self.count += 1
        one = parcel(version=self.count, tree=self.repository.state())
        return replace(one, key=f"sink/{self.count}", at_ns=one.at_ns + self.count, **self.fields)

    def deliver(self, **files: str) -> None:
        self.repository.deliver(self.step(**files))


def committed(repository: Repository, **files: str) -> None:
    repository.write(**files)
    repository("add", "--all")
    repository("commit", "-q", "-m", "first")


def test_what_was_there_before_is_no_steps(repository: Repository) -> None:
    """Uncommitted work and secrets stay out of the branch; what steps add, change, remove and put in the place of
    directories is in it, whatever its name. The user's checkout is as it was."""
    committed(repository, kept="kept", gone="gone", dir_inner="inner", mine="mine")
    repository.write(env="secret", mine="my own work")
    repository("rm", "-q", "--cached", "gone")
    repository.write(gone="gone")
    steps = Steps(repository)
    before = repository("status", "--porcelain")
    repository("config", "core.quotePath", "false")
    (repository.directory / 'q"ü\t\n.txt').write_text("odd")
    (repository.directory / os.fsdecode(b"b\xff")).write_text("odd")
    steps.deliver(new_file="new", kept="changed")
    assert len(repository.changed(BRANCH)) == 4
    assert repository("show", f"{BRANCH}:kept") == "changed" and repository("show", f"{BRANCH}:mine") == "mine"
    repository.write(dir_inner="")
    (repository.directory / "dir").rmdir()
    steps.deliver(dir="a file now")
    assert repository.changed(BRANCH) == ["A\tdir", "D\tdir/inner"]
    steps.deliver(kept="kept", new_file="")
    assert repository.changed(BRANCH) == ["M\tkept", "D\tnew/file"]
    assert "env" not in repository("log", "--name-only", "--format=", BRANCH).split()
    steps.deliver(env="")
    assert "env" not in repository("ls-tree", "-r", "--name-only", BRANCH).split() and repository.count() == 5
    steps.deliver(mine="a step's work")
    assert repository.changed(BRANCH) == ["M\tmine"] and repository("show", f"{BRANCH}:mine") == "a step's work"
    assert repository("diff", "--cached", "--name-only") == "gone\n" and before.startswith("D  gone\n")


def test_a_repository_without_a_commit(repository: Repository) -> None:
    """Begins with what the first step has changed."""
    repository.write(env="secret")
    steps = Steps(repository)
    steps.deliver(code="code")
    assert repository.count() == 1 and repository.changed(BRANCH) == ["A\tcode"]


def test_what_was_not_delivered_comes_with_the_next_and_late_undoes_nothing(repository: Repository) -> None:
    """A delivery that fails loses no change; one that is made up for later has a commit that changes nothing."""
    committed(repository, kept="kept")
    steps = Steps(repository)
    first = steps.step(one="1")
    second = steps.step(two="2", one="1 again")
    repository.deliver(second)
    assert repository.changed(BRANCH) == ["A\tone", "A\ttwo"]
    place = repository.deliver(first)
    assert repository.changed(BRANCH) == [] and repository("show", f"{BRANCH}:one") == "1 again"
    assert repository.deliver(first) == place and repository.count() == 3
    steps.deliver(three="3")
    assert repository.changed(BRANCH) == ["A\tthree"]


def test_what_is_built_on_a_late_commit_is_as_the_steps_left_it(repository: Repository) -> None:
    """Whatever comes late, and however much: nothing older shows again, and what was removed is gone."""
    committed(repository, kept="kept")
    steps = Steps(repository)
    early = [steps.step(one="1"), steps.step(y="of the second")]
    steps.deliver(y="of the third", scratch="scratch")
    for late in early:
        repository.deliver(late)
        assert repository.changed(BRANCH) == [] and repository("show", f"{BRANCH}:y") == "of the third"
    steps.deliver(scratch="")
    assert repository.changed(BRANCH) == ["D\tscratch"]
    assert repository("rev-parse", f"{BRANCH}^{{tree}}").strip() == repository.state()


def test_what_git_has_pruned_hinders_nothing(repository: Repository) -> None:
    """A step's change can be lost with the state before it, which is said; never is what no step changed committed,
    and the next step's commit is whole. What it left is committed without the state after it as well."""
    committed(repository, kept="kept")
    repository.write(env="secret")
    steps = Steps(repository)
    steps.deliver(one="1")
    forgotten = steps.step(two="2")
    second = steps.step(two="2 again")
    repository.prune()
    receipt = repository.receipt(forgotten)
    assert receipt.place and "no longer has" in receipt.note and repository.changed(BRANCH) == []
    third = replace(steps.step(three="3"), artifacts=())
    receipt = repository.receipt(third)
    assert receipt.place and "no longer has" in receipt.note and repository.changed(BRANCH) == []
    assert repository.receipt(third).place == receipt.place
    assert not repository.receipt(second).note and repository.changed(BRANCH) == [], "late"
    receipt = repository.receipt(steps.step(four="4"))
    assert not receipt.note and repository.changed(BRANCH) == ["A\tfour"]
    assert "env" not in repository("ls-tree", "-r", "--name-only", BRANCH).split()


def test_what_git_has_pruned_before_there_is_a_branch(repository: Repository) -> None:
    """In a repository without a commit: the first one of the branch is empty."""
    repository.write(env="secret")
    steps = Steps(repository)
    repository.write(env="another secret")
    repository.prune()
    receipt = repository.receipt(steps.step(one="1"))
    assert receipt.place and receipt.note and not repository("ls-tree", "-r", BRANCH)
    steps.deliver(two="2")
    assert repository.changed(BRANCH) == ["A\ttwo"]


@pytest.mark.parametrize("is_fresh", [True, False])
def test_what_nobody_noted_before_the_first_step_is_not_committed(repository: Repository, is_fresh: bool) -> None:
    """Git failed just then, or there was no repository: the first commit changes nothing and says so, the next one
    has its step's changes."""
    if not is_fresh:
        committed(repository, kept="kept")
    repository.write(env="secret")
    steps = Steps(repository, before="")
    receipt = repository.receipt(steps.step(one="1"))
    assert receipt.place and "not known" in receipt.note and repository.changed(BRANCH) == []
    steps.deliver(two="2")
    assert repository.changed(BRANCH) == ["A\ttwo"]
    kept = [] if is_fresh else ["kept"]
    assert repository("ls-tree", "-r", "--name-only", BRANCH).split() == [*kept, "two"]


def test_what_goes_on_from_another_session_has_its_commits(repository: Repository) -> None:
    """Of the nearest that has a branch; that one stays where it is, and nothing is committed anew."""
    committed(repository, kept="kept")
    repository.write(env="secret")
    steps = Steps(repository)
    delivered = steps.step(one="1")
    repository.deliver(delivered)
    old = repository("rev-parse", BRANCH)
    again = {"session": "s-9999999999", "origins": ("s-8888888888", "s-7777777777")}
    repository.deliver(replace(delivered, **again))
    assert repository("for-each-ref", "refs/heads/otto/s-9999999999") == ""
    repository.deliver(replace(steps.step(two="2"), **again))
    repository.deliver(replace(steps.step(three="3"), **again))
    heir = "otto/s-9999999999"
    assert repository("rev-parse", f"{heir}~2") == repository("rev-parse", BRANCH) == old
    assert repository.changed(heir) == ["A\tthree"] and repository.changed(f"{heir}~1") == ["A\ttwo"]
