"""What steps have changed, as a branch of the workflow's own: a commit for each step that completed.

The commits are made of what `git add` and `git write-tree` with an index of the sandbox's own have written: neither
the user's checkout, index nor HEAD is touched, nor looked at but for the first commit's parent. The branch is
`otto/SESSION`, after the workflow's session; if that goes on from another one, so does its branch. While it is
checked out somewhere it is not moved, because that checkout would seem to have undone every step.

A commit is its parent with what has changed in the working directory since the state that the newest of them notes,
or since the workflow began: what lay there before, and was never committed, is no step's. Of a file that had been
changed before, and that a step then changes, all of it is committed.

    build[1]/coder of fix

    Otto-Workflow: s-7f3k2m9qxa
    Otto-Step: build[1]/coder
    Otto-Session: s-9d2m…                       of the step
    Otto-Artifact: art-7f3k… code_diff@1        for each that it left
    Otto-State: 4b825dc6… 1795869000000000000   the working directory, and when it was so
    Otto-Delivery: git_branch/build[1]/coder#1

A commit's id follows from the journal alone, and its last trailer says which delivery it is: none is there twice. A
step that left nothing and changed nothing has no commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
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


Graft = Callable[[str, str, str], Awaitable[str]]
"""Gives the tree that the first one is, or an empty one, with all that changed from the second to the third."""


class GitBranch:
    """`Destination` of one repository."""

    def __init__(self, git: Git, *, graft: Graft) -> None:
        self._git = git
        self._graft = graft

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
        old, checkout = await self._tip(branch)
        if checkout:
            raise Undelivered(
                f"the branch {branch} is checked out in {checkout}",
                code="checked_out",
                mend="switch to another branch there",
            )
        tip = old
        for origin in parcel.origins:
            tip = tip or (await self._tip(PREFIX + origin))[0]
        if tip and (known := await self._known(tip, parcel.key)):
            return _receipt(branch, known)
        parent = tip or await self._head()
        tree = await self._committed(parcel, tip, parent)
        if parent and not parcel.artifacts and tree == await self._tree(parent):
            return Receipt()
        words = ["commit-tree", tree, *(["-p", parent] if parent else []), "-F", "-"]
        commit = (await self._git(words, stdin=_message(parcel), env=_identity(parcel))).strip()
        # Nobody has moved it since it was looked at, or this fails and it is looked at again.
        await self._git(["update-ref", "-m", f"otto: {parcel.path}", f"refs/heads/{branch}", commit, old])
        return _receipt(branch, commit)

    async def _tip(self, branch: str) -> tuple[str, str]:
        """A branch's commit, and where it is checked out; empty without it."""
        words = ["for-each-ref", "--format=%(objectname) %(worktreepath)", f"refs/heads/{branch}"]
        tip, _, checkout = (await self._git(words)).strip().partition(" ")
        return tip, checkout

    async def _committed(self, parcel: Parcel, tip: str, parent: str) -> str:
        """The tree of the parcel's commit."""
        if not parcel.before:
            return parcel.tree  # Nobody noted what was there before.
        since, at_ns = await self._newest_state(tip) if tip else ("", 0)
        if at_ns > parcel.at_ns:
            return await self._tree(parent)  # It comes late: what it changed went with one after it.
        return await self._graft(await self._tree(parent) if parent else "", since or parcel.before, parcel.tree)

    async def _newest_state(self, tip: str) -> tuple[str, int]:
        """The working directory that the newest commit of a branch was made from, and when that was so."""
        words = ["log", "--format=%(trailers:key=Otto-State,valueonly)", "--fixed-strings", "--grep=Otto-State: "]
        for line in (await self._git([*words, "--max-count=16", tip, "--"])).splitlines():
            state, _, at_ns = line.strip().partition(" ")
            if at_ns.isdecimal():
                return state, int(at_ns)
        return "", 0

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
        *([f"Otto-State: {parcel.tree} {parcel.at_ns}"] if parcel.before else []),
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
