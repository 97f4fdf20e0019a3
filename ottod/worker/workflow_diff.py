"""What a step has changed in the git repository of the working directory, as a diff.

The state of the whole working tree is written as a tree object, through an index of its own, when the first attempt
of the step begins and when one has ended; what is between the two is the step's. Steps that run side by side in one
directory see each other's changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ottod.errors import ToolError
from ottod.protocol.toolio import Programs
from ottod.tools.git_program import QUIET, SETTINGS, explained

TIMEOUT_S = 120.0
MAX_LOOKS = 3
"""At the working directory, for a state that nothing can be built on without."""
MAX_DIFF_BYTES = 8 * 1024 * 1024
OPTIONS = tuple(word for setting in SETTINGS for word in ("-c", setting))
STATE = """
place=$(mktemp -d "${TMPDIR:-/tmp}/index-XXXXXXXX") || exit
export GIT_INDEX_FILE="$place/index"
git "$@" add --all -- . && git "$@" write-tree
status=$?
rm -rf "$place"
exit $status
"""
"""The index is this one's own, and is gone afterwards: the user's is not touched. Its name is no process's number,
since the sandboxes of a session have one directory for such files and each counts its processes from 1."""
GRAFT = r"""
place=$(mktemp -d "${TMPDIR:-/tmp}/index-XXXXXXXX") || exit
export GIT_INDEX_FILE="$place/index"
changes="$GIT_INDEX_FILE.changes" onto=$1 before=$2 after=$3
shift 3
git "$@" read-tree "$onto" &&
    git "$@" -c core.quotePath=true diff-tree -r --no-renames "$before" "$after" > "$changes" &&
    sed -E 's/^:[0-7]+ ([0-7]+) [0-9a-f]+ ([0-9a-f]+) [A-Z][0-9]*\t/\1 \2\t/' "$changes" |
        git "$@" update-index --add --replace --index-info &&
    git "$@" write-tree
status=$?
rm -rf "$place"
exit $status
"""
"""What `diff-tree` says, as `update-index` takes it; names of files go through as git quotes them."""
NOTHING = "--empty"
"""For `read-tree`: a tree without a file."""


class WorkingTree:
    """The repository of one session's directory."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    async def state(self) -> str:
        """The id of a tree object with everything as it is now. Raises ToolError if there is no repository."""
        return (await self._run(["sh", "-c", STATE, "sh", "--no-pager", *OPTIONS], "add")).strip()

    async def state_if_any(self) -> str:
        """The same; empty if there is no repository, or git fails. It looks again, for files change meanwhile."""
        for _ in range(MAX_LOOKS):
            try:
                return await self.state()
            except ToolError as error:
                if error.code == "timeout":
                    break
        return ""

    async def graft(self, onto: str, before: str, after: str) -> str:
        """The id of a tree like `onto`, or an empty one, in which all that differs between two others is as in the
        second. Raises ToolError."""
        argv = ["sh", "-c", GRAFT, "sh", onto or NOTHING, before, after, "--no-pager", *OPTIONS]
        return (await self._run(argv, "read-tree")).strip()

    async def has(self, state: str) -> bool:
        """Whether git still has it: nothing names it, so after some weeks it may be gone."""
        try:
            await self.git(["cat-file", "-e", state])
        except ToolError:
            return False
        return True

    async def diff(self, before: str, after: str) -> str:
        """What changed between two states. Raises ToolError."""
        arguments = ["diff", "--no-ext-diff", "--no-textconv", "--no-color", before, after]
        return await self._run(["git", "--no-pager", *OPTIONS, *arguments], "diff")

    async def git(self, arguments: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        """What git says, deaf to the repository's settings. Raises ToolError if it fails."""
        argv = ["git", "--no-pager", *OPTIONS, *arguments]
        return await self._run(argv, arguments[0], stdin=stdin, env=env or {})

    async def _run(
        self, argv: Sequence[str], what: str, *, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> str:
        result = await self._programs.run(
            argv,
            timeout_s=TIMEOUT_S,
            max_output_bytes=MAX_DIFF_BYTES,
            env={**QUIET, **(env or {})},
            stdin=stdin,
        )
        if result.ended == "timeout":
            raise ToolError(f"git {what} did not end within {TIMEOUT_S:g} s", code="timeout")
        if result.exit_status != 0:
            raise ToolError(f"git {what} failed: {explained(result.output)}", code="git")
        return result.output
