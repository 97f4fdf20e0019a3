"""What steps have changed, as a branch of the workflow's own: a commit for each step that completed.

The commits are made of what `git add` and `git write-tree` with an index of the sandbox's own have written: neither
the user's checkout, index nor HEAD is touched, nor looked at but for the first commit's parent. The branch is
`otto/SESSION`, after the workflow's session; while it is checked out somewhere it is not moved, because that checkout
would seem to have undone every step.

    build[1]/coder of fix

    Otto-Workflow: s-7f3k2m9qxa
    Otto-Step: build[1]/coder
    Otto-Session: s-9d2m…                       of the step
    Otto-Artifact: art-7f3k… code_diff@1        for each that it left
    Otto-Delivery: git_branch/build[1]/coder#1

A commit's id follows from the journal alone, and its last trailer says which delivery it is: none is there twice. A
step that left nothing and changed nothing has no commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from ottod.errors import ToolError
from ottod.sinks.base import Parcel, Receipt, Undelivered

PREFIX = "otto/"
MAX_RACES = 4
"""How often somebody else may move the branch meanwhile."""
SHORT_DIGITS = 12


class Git(Protocol):
    """Runs git in the working directory, deaf to its settings. Raises ToolError if it fails."""

    def __call__(
        self, arguments: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Awaitable[str]: ...


class GitBranch:
    """`Destination` of one repository."""

    def __init__(self, git: Git) -> None:
        self._git = git

    async def deliver(self, parcel: Parcel) -> Receipt:
        """See `Destination.deliver`."""
        if not parcel.tree:
            raise Undelivered(
                "the working directory is no git repository of its own, or git could not read it",
                code="no_repository",
                is_final=True,
            )
        for attempt in range(MAX_RACES):
            try:
                return await self._commit(parcel)
            except ToolError:
                if attempt == MAX_RACES - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _commit(self, parcel: Parcel) -> Receipt:
        """Raises ToolError, Undelivered."""
        branch = PREFIX + parcel.session
        ref = f"refs/heads/{branch}"
        found = await self._git(["for-each-ref", "--format=%(objectname) %(worktreepath)", ref])
        tip, _, checkout = found.strip().partition(" ")
        if checkout:
            raise Undelivered(
                f"the branch {branch} is checked out in {checkout}",
                code="checked_out",
                mend="switch to another branch there",
            )
        if tip and (known := await self._known(tip, parcel.key)):
            return _receipt(branch, known)
        parent = tip or await self._head()
        if parent and not parcel.artifacts and parcel.tree == await self._tree(parent):
            return Receipt()
        words = ["commit-tree", parcel.tree, *(["-p", parent] if parent else []), "-F", "-"]
        commit = (await self._git(words, stdin=_message(parcel), env=_identity(parcel))).strip()
        # Nobody has moved it since it was looked at, or this fails and it is looked at again.
        await self._git(["update-ref", "-m", f"otto: {parcel.path}", ref, commit, tip])
        return _receipt(branch, commit)

    async def _known(self, tip: str, key: str) -> str:
        """The commit of this very delivery, if the branch has it."""
        trailer = f"Otto-Delivery: {key}"
        words = ["log", "--format=%H%x00%(trailers:key=Otto-Delivery,unfold)", "--fixed-strings", f"--grep={trailer}"]
        for line in (await self._git([*words, tip, "--"])).splitlines():
            commit, _, said = line.partition("\0")
            if said.strip() == trailer:
                return commit
        return ""

    async def _head(self) -> str:
        try:
            return (await self._git(["rev-parse", "--verify", "--quiet", "HEAD"])).strip()
        except ToolError:
            return ""  # There is no commit yet.

    async def _tree(self, commit: str) -> str:
        return (await self._git(["rev-parse", "--verify", f"{commit}^{{tree}}"])).strip()


def _receipt(branch: str, commit: str) -> Receipt:
    return Receipt(place=f"{branch}@{commit[:SHORT_DIGITS]}")


def _message(parcel: Parcel) -> bytes:
    sessions = dict.fromkeys(info.session for info in parcel.artifacts if info.session)
    lines = [
        f"{parcel.path} of {parcel.workflow}",
        "",
        f"Otto-Workflow: {parcel.session}",
        f"Otto-Step: {parcel.path}",
        *(f"Otto-Session: {session}" for session in sessions),
        *(f"Otto-Artifact: {info.artifact} {info.name}@{info.version}" for info in parcel.artifacts),
        f"Otto-Delivery: {parcel.key}",
    ]
    return ("\n".join(lines) + "\n").encode()


def _identity(parcel: Parcel) -> dict[str, str]:
    """The workflow's, at the moment of the step's end: the same commit, whoever makes it."""
    date = f"@{parcel.at_ns // 1_000_000_000} +0000"
    name, address = f"Otto ({parcel.workflow})", f"{parcel.workflow}@otto.invalid"
    return {
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": address,
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": address,
        "GIT_COMMITTER_DATE": date,
    }
