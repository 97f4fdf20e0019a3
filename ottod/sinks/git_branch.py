"""What steps have changed, as a branch of the workflow's own: a commit for each step that completed.

The commits are made of what `git add` and `git write-tree` with an index of the sandbox's own have written: neither
the user's checkout, index nor HEAD is touched, nor looked at but for the first commit's parent. The branch is
`otto/SESSION`, after the workflow's session; if that goes on from another one, so does its branch. While it is
checked out somewhere it is not moved, because that checkout would seem to have undone every step.

A commit is its parent with what has changed in the working directory since the state that the newest of them notes,
or since the workflow began: what lay there before, and was never committed, is no step's. Of a file that had been
changed before, and that a step then changes, all of it is committed. One that comes late changes nothing, and notes
the state that it found. Without a state that git has pruned, or that nobody noted, a commit changes nothing either,
and says so.

    build[1]/coder of fix

    Otto-Workflow: s-7f3k2m9qxa
    Otto-Step: build[1]/coder
    Otto-Session: s-9d2m…                       of the step
    Otto-Artifact: art-7f3k… code_diff@1        for each that it left
    Otto-State: 4b825dc6… 1795869000000000000   the newest state of the working directory, and when it was so
    Otto-Delivery: git_branch/build[1]/coder#1

A commit's id follows from the journal alone, and its last trailer says which delivery it is: none is there twice. A
step that left nothing and changed nothing has no commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from ottod.errors import ToolError
from ottod.sinks.base import Parcel, Receipt, Undelivered

PREFIX = "otto/"
MAX_RACES = 4
"""How often somebody else may move the branch meanwhile."""
SHORT_DIGITS = 12
PRUNED = "git no longer has the working directory as it was {}: what the step changed is not in its commit"

UNKNOWN = "the working directory as it was before any step is not known: what the step changed is not in its commit"


class Git(Protocol):
    """Runs git in the working directory, deaf to its settings. Raises ToolError if it fails."""

    def __call__(
        self, arguments: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Awaitable[str]: ...


Graft = Callable[[str, str, str], Awaitable[str]]
"""Gives the tree that the first one is, or an empty one, with all that changed from the second to the third."""


class State(NamedTuple):
    """The working directory at a moment. `tree` is git's name for it, empty if nobody noted it."""

    tree: str = ""
    at_ns: int = 0


class Content(NamedTuple):
    """What a commit is made of: its tree, the state that it notes, and what has to be said of it."""

    tree: str
    state: State
    note: str = ""


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
        content = await self._content(parcel, tip, parent)
        if parent and not parcel.artifacts and not content.note and content.tree == await self._tree(parent):
            return Receipt()
        words = ["commit-tree", content.tree, *(["-p", parent] if parent else []), "-F", "-"]
        commit = (await self._git(words, stdin=_message(parcel, content.state), env=_identity(parcel))).strip()
        # Nobody has moved it since it was looked at, or this fails and it is looked at again.
        await self._git(["update-ref", "-m", f"otto: {parcel.path}", f"refs/heads/{branch}", commit, old])
        return _receipt(branch, commit, content.note)

    async def _tip(self, branch: str) -> tuple[str, str]:
        """A branch's commit, and where it is checked out; empty without it."""
        words = ["for-each-ref", "--format=%(objectname) %(worktreepath)", f"refs/heads/{branch}"]
        tip, _, checkout = (await self._git(words)).strip().partition(" ")
        return tip, checkout

    async def _content(self, parcel: Parcel, tip: str, parent: str) -> Content:
        own = State(parcel.tree, parcel.at_ns)
        found = await self._newest_state(tip) if tip else State()
        if found.at_ns > own.at_ns:
            return Content(await self._tree(parent), found)  # It comes late: what it changed went with one after it.
        onto = await self._tree(parent) if parent else ""
        since = found.tree or parcel.before
        if not since:
            # All of it would be what lay there before as well.
            return Content(onto or await self._nothing(), own, UNKNOWN)
        try:
            return Content(await self._graft(onto, since, own.tree), own)
        except ToolError:
            is_known, is_own_known = await self._has(since), await self._has(own.tree)
            if is_known and is_own_known:
                raise
        # To put all of it on instead would commit what is no step's. From here on the next one's changes are known.
        onto = onto or await self._nothing()
        if is_own_known:
            return Content(onto, own, PRUNED.format("before it"))
        return Content(onto, found, PRUNED.format("after it"))

    async def _nothing(self) -> str:
        return (await self._git(["mktree"])).strip()

    async def _has(self, tree: str) -> bool:
        """Whether git still has it. Nothing names it, so after some weeks it may be gone."""
        return not (await self._git(["cat-file", "--batch-check"], stdin=f"{tree}\n".encode())).endswith(" missing\n")

    async def _newest_state(self, tip: str) -> State:
        """What the newest commit of a branch that notes one does."""
        words = ["log", "--format=%(trailers:key=Otto-State,valueonly)", "--fixed-strings", "--grep=Otto-State: "]
        for line in (await self._git([*words, "--max-count=16", tip, "--"])).splitlines():
            tree, _, at_ns = line.strip().partition(" ")
            if at_ns.isdecimal():
                return State(tree, int(at_ns))
        return State()

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


def _receipt(branch: str, commit: str, note: str = "") -> Receipt:
    return Receipt(place=f"{branch}@{commit[:SHORT_DIGITS]}", note=note)


def _message(parcel: Parcel, state: State) -> bytes:
    sessions = dict.fromkeys(info.session for info in parcel.artifacts if info.session)
    lines = [
        f"{parcel.path} of {parcel.workflow}",
        "",
        f"Otto-Workflow: {parcel.session}",
        f"Otto-Step: {parcel.path}",
        *(f"Otto-Session: {session}" for session in sessions),
        *(f"Otto-Artifact: {info.artifact} {info.name}@{info.version}" for info in parcel.artifacts),
        *([f"Otto-State: {state.tree} {state.at_ns}"] if state.tree else []),
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
