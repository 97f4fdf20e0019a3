"""Commits on a branch that nobody stands on, made with real git."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from ottod.errors import ToolError
from ottod.sinks.base import Parcel, Undelivered
from ottod.sinks.git_branch import GitBranch
from tests.sinks.parcels import parcel

BRANCH = "otto/s-7777777777"


class Repository:
    """A real one. `on_call` is done before each call of git by the sink."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.on_call = lambda arguments: None
        self("init", "-q", "-b", "trunk")

    def __call__(self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        words = ["git", "-c", "user.name=u", "-c", "user.email=u@example.org", *arguments]
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

    def deliver(self, one: Parcel) -> str:
        return asyncio.run(GitBranch(self.git).deliver(one)).place

    def count(self) -> int:
        return int(self("rev-list", "--count", BRANCH))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_a_step_is_committed_once(repository: Repository) -> None:
    """Also into a repository without a commit; the same delivery again finds its commit, wherever the tip is."""
    one = parcel(tree=repository.tree("1"))
    two = parcel(version=2, tree=repository.tree("2"))
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
    tree = repository.tree("1")
    repository.deliver(parcel(tree=tree))
    empty = Parcel(key="k", workflow="fix", session="s-7777777777", path="idle", attempt=1, at_ns=0, tree=tree)
    assert repository.deliver(empty) == "" and repository.count() == 1


def test_a_branch_that_somebody_moves_or_stands_on(repository: Repository) -> None:
    """Moved meanwhile: what is there stays, and the commit comes on top. Checked out: it is left alone."""
    repository.deliver(parcel(tree=repository.tree("1")))
    moved = []

    def move(arguments: Sequence[str]) -> None:
        if arguments[0] == "update-ref" and not moved:
            other = repository("commit-tree", repository.tree("x"), "-p", BRANCH, "-m", "theirs").strip()
            moved.append(other)
            repository("update-ref", f"refs/heads/{BRANCH}", other)

    repository.on_call = move
    repository.deliver(parcel(version=2, tree=repository.tree("2")))
    assert repository.count() == 3 and repository("rev-parse", f"{BRANCH}~1").strip() == moved[0]
    repository("checkout", "-q", BRANCH)
    with pytest.raises(Undelivered, match="checked out") as caught:
        repository.deliver(parcel(version=3, tree=repository.tree("3")))
    assert not caught.value.is_final and repository.count() == 3
    assert not repository("status", "--porcelain")
