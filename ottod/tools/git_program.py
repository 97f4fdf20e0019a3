"""git as a tool calls it: in the sandbox, deaf to whatever a repository could make it run.

A repository can make git run programs: hooks, a file system monitor, external diffs, pagers, editors, filters of
attributes, helpers of transports. All that can be switched off is. What a filter of the repository's own settings
does (large files, line ends) is left alone, because a commit without it would be another one; it runs in the sandbox,
like git itself, and its settings lie where no session can write.

The session may not make a repository by writing its parts: one that does not lie in a `.git` is not looked at.

The sandbox lets git write what commits need (objects, refs, the index, logs, HEAD) and holds the rest of `.git`
read-only. Source: git-config(1), ADR 0010, ADR 0017.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ottod.errors import ToolError
from ottod.tools.base import ProgramResult, ToolContext

SETTINGS = (
    *(
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "core.untrackedCache=false",
        "core.attributesFile=/dev/null",
    ),
    *("core.editor=false", "core.pager=cat", "core.askPass=", "core.sshCommand=false"),
    *("core.quotePath=false", "core.commentChar=#", "color.ui=false", "advice.statusHints=false"),
    *("log.showSignature=false", "submodule.recurse=false"),
    *("commit.gpgSign=false", "tag.gpgSign=false", "gpg.program=false", "commit.template=", "commit.verbose=false"),
    *("credential.helper=", "protocol.allow=never", "safe.bareRepository=explicit", "safe.directory=*"),
    *("gc.auto=0", "maintenance.auto=false", "merge.verifySignatures=false"),
)
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "false",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
}
"""Nothing of the user's own settings, no prompts, and names of files as they are."""
QUIET = {**ENVIRONMENT, "GIT_OPTIONAL_LOCKS": "0"}
"""For what only looks: other sessions in the same repository are not kept from writing."""
LOCK_ATTEMPTS = 20
LOCK_AGAIN_S = 0.1
"""Between two tries while somebody else, another session perhaps, changes the index."""


async def git(
    arguments: Sequence[str],
    context: ToolContext,
    *,
    env: Mapping[str, str] = QUIET,
    max_output_bytes: int = 64 * 1024,
    stdin: bytes = b"",
) -> ProgramResult:
    """Runs git in the working directory and waits its turn at the index. Raises ToolError if it cannot be started."""
    options = [word for setting in SETTINGS for word in ("-c", setting)]
    for attempt in range(LOCK_ATTEMPTS):
        result = await context.programs.run(
            ["git", "--no-pager", *options, *arguments],
            timeout_s=context.timeout_s,
            max_output_bytes=max_output_bytes,
            env=env,
            stdin=stdin,
        )
        if result.exit_status == 0 or ".lock': File exists" not in result.output or attempt == LOCK_ATTEMPTS - 1:
            return result
        await asyncio.sleep(LOCK_AGAIN_S)
    raise AssertionError("the last attempt returns")


async def git_or_fail(
    arguments: Sequence[str], context: ToolContext, *, env: Mapping[str, str] = QUIET, stdin: bytes = b""
) -> str:
    """What git says. Raises ToolError with it if it fails."""
    result = await git(arguments, context, env=env, stdin=stdin)
    if result.ended == "timeout":
        raise ToolError(f"git {arguments[0]} did not end within {context.timeout_s:g} s", code="timeout")
    if result.exit_status != 0:
        raise ToolError(f"git {arguments[0]} failed: {explained(result.output)}", code="git")
    return result.output


def explained(output: str) -> str:
    """Git's complaint, with the reason where it is Otto's doing."""
    text = output.strip()[-2000:] or "it says nothing"
    if "not a git repository" in text or "cannot use bare repository" in text:
        return "the working directory is no git repository of its own (one above it is out of reach)"
    return text


def checked_revision(text: str) -> str:
    """A revision that cannot be taken for an option. Raises ToolError."""
    if text.startswith("-") or any(not c.isprintable() for c in text):
        raise ToolError(f"{text[:100]!r} is no revision", code="bad_arguments")
    return text
