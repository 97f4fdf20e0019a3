"""git: what has changed, and small commits on a branch of the session's own."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Tool, ToolContext, ToolOutput
from ottod.tools.git_program import ENVIRONMENT, checked_revision, git, git_or_fail
from ottod.tools.keep_whole import keep_whole

MAX_DIFF_BYTES = 8 * 1024 * 1024
"""Of a diff that is kept; of a longer one git's output is cut in the middle."""
MAX_PATHS = 200
BRANCH_PREFIX = "otto/"
LOG_FORMAT = "%h %ad %an: %s"
PROTECTED = frozenset({".git", ".otto"})
LOOKING = ("status", "diff", "log", "show")

Path = Annotated[str, Meta(min_length=1, max_length=4096)]


class GitArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do."""

    action: Annotated[
        Literal["status", "diff", "log", "show", "branch", "commit", "restore"],
        Meta(
            description="status, diff (of the working tree, or against revision), log, show (revision), branch "
            "(begin or return to this session's own), commit (on it), restore (paths, from revision, else HEAD)."
        ),
    ]
    paths: Annotated[
        tuple[Path, ...],
        Meta(max_length=MAX_PATHS, description="Only these files or directories. For commit, default: all changes."),
    ] = ()
    revision: Annotated[
        str, Meta(max_length=250, description="A commit, branch, or range, such as `main..HEAD`.")
    ] = ""
    message: Annotated[str, Meta(max_length=10_000, description="For commit: what it does, and why.")] = ""
    staged: Annotated[bool, Meta(description="For diff: what is staged, instead of what is not.")] = False
    limit: Annotated[int, Meta(ge=1, le=500, description="For log: how many commits.")] = 20
    artifact: Annotated[
        str, Meta(max_length=100, description="For diff and show: keep the whole as an artifact of this name.")
    ] = ""


async def run(arguments: GitArguments, context: ToolContext) -> ToolOutput:
    """What git says."""
    paths = await context.in_thread(_checked_paths, arguments.paths, context)
    match arguments.action:
        case "status":
            words = [
                "status",
                "--short",
                "--branch",
                "--untracked-files=all",
                "--ignore-submodules=all",
                "--",
                *paths,
            ]
            return await _shown(words, context, name="git-status.txt")
        case "diff":
            return await _diff(arguments, paths, context)
        case "log":
            revision = checked_revision(arguments.revision) or "HEAD"
            words = ["log", f"--max-count={arguments.limit}", "--date=iso-strict", f"--format={LOG_FORMAT}"]
            return await _shown([*words, "--end-of-options", revision, "--", *paths], context, name="git-log.txt")
        case "show":
            revision = checked_revision(arguments.revision) or "HEAD"
            words = ["show", "--no-ext-diff", "--no-textconv", "--stat", "--patch", "--end-of-options", revision]
            return await _shown(
                [*words, "--", *paths],
                context,
                name=arguments.artifact or "git-show.diff",
                kind="code_diff",
                keeps=bool(arguments.artifact),
            )
        case "branch":
            return ToolOutput(text=await _own_branch(context))
        case "commit":
            return await _commit(arguments, paths, context)
        case "restore":
            return await _restore(arguments, paths, context)


async def _diff(arguments: GitArguments, paths: list[str], context: ToolContext) -> ToolOutput:
    words = ["diff", "--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=dirty"]
    words += ["--cached"] if arguments.staged else []
    if arguments.revision:
        words += ["--end-of-options", checked_revision(arguments.revision)]
    name = arguments.artifact or "changes.diff"
    output = await _shown(
        [*words, "--", *paths], context, name=name, kind="code_diff", keeps=bool(arguments.artifact)
    )
    return output if output.text else ToolOutput(text="nothing differs")


async def _shown(
    words: list[str], context: ToolContext, *, name: str, kind: str = "file", keeps: bool = False
) -> ToolOutput:
    """Git's output as far as there is room; what is longer, and what is to be kept, as an artifact."""
    result = await git(words, context, max_output_bytes=MAX_DIFF_BYTES)
    if result.ended == "timeout" or result.exit_status != 0:
        await git_or_fail(words, context)
        raise ToolError(f"git {words[0]} did not end within {context.timeout_s:g} s", code="timeout")
    text = result.output.rstrip("\n")
    if not keeps or not text:
        shown = await keep_whole(text, context, name=name, kind=kind, room_bytes=context.max_output_bytes - 500)
        return ToolOutput(text="\n".join([*(f"[{n}]" for n in shown.notes), shown.text]), truncated=shown.is_cut)
    if context.artifacts is None:
        raise ToolError("there are no artifacts outside of a session", code="unavailable")
    info = await context.artifacts.write(
        f"{text}\n".encode("utf-8", "replace"), name=name, kind=kind, key=context.idempotency_key
    )
    lines = plural(text.count("\n") + 1, "line")
    return ToolOutput(
        text=f"kept {info.name}, version {info.version}, {lines}, as {info.artifact}",
        data={"artifact": info.artifact},
    )


async def _own_branch(context: ToolContext) -> str:
    """Sees to it that the working tree is on the session's own branch; says what was done."""
    if not context.session:
        raise ToolError("there is no session to name a branch after", code="unavailable")
    name = BRANCH_PREFIX + context.session
    current = (await git(["symbolic-ref", "--quiet", "--short", "HEAD"], context)).output.strip()
    if current == name:
        return f"on branch {name}"
    known = await git(["show-ref", "--verify", "--quiet", f"refs/heads/{name}"], context)
    has_commits = (await git(["rev-parse", "--verify", "--quiet", "HEAD"], context)).exit_status == 0
    if known.exit_status == 0:
        await git_or_fail(["switch", "--no-guess", "--no-recurse-submodules", name], context, env=ENVIRONMENT)
        return f"switched to branch {name}"
    words = (
        ["switch", "--no-recurse-submodules", "--create", name]
        if has_commits
        else ["symbolic-ref", "HEAD", f"refs/heads/{name}"]
    )
    await git_or_fail(words, context, env=ENVIRONMENT)
    return f"began branch {name}" + (f" from {current}" if current and has_commits else "")


async def _commit(arguments: GitArguments, paths: list[str], context: ToolContext) -> ToolOutput:
    message = arguments.message.strip()
    if not message:
        raise ToolError("a commit needs a message that says what it does, and why", code="bad_arguments")
    done = await _own_branch(context)
    await git_or_fail(["add", "--all", "--", *(paths or ["."])], context, env=ENVIRONMENT)
    if (await git(["diff", "--cached", "--quiet", "--no-ext-diff", "--", *paths], context)).exit_status == 0:
        raise ToolError("there is nothing to commit" + (" in these paths" if paths else ""), code="git")
    whole = f"{message}\n\nOtto-Session: {context.session}\n".encode("utf-8", "replace")
    words = ["commit", "--quiet", "--no-verify", "--no-post-rewrite", "--cleanup=whitespace", "--file=-"]
    await git_or_fail(
        [*words, *(["--only", "--", *paths] if paths else [])],
        context,
        env={**ENVIRONMENT, **_identity(context)},
        stdin=whole,
    )
    said = await git_or_fail(["show", "--no-patch", "--format=%h %s", "HEAD"], context)
    stat = await git_or_fail(["diff-tree", "--no-commit-id", "--shortstat", "-r", "--root", "HEAD"], context)
    commit = (await git_or_fail(["rev-parse", "HEAD"], context)).strip()
    return ToolOutput(text=f"{done}; committed {said.strip()} ({stat.strip()})", data={"commit": commit})


def _identity(context: ToolContext) -> dict[str, str]:
    """Whose the commit is: the agent's, and not the user's, unless the agent's file says otherwise."""
    agent = re.sub(r"[^a-z0-9_-]", "", context.agent) or "agent"
    name, _, address = context.git_author.rstrip(">").partition(" <")
    name, address = (name, address) if address else (f"Otto ({agent})", f"{agent}@otto.invalid")
    return {
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": address,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": address,
    }


async def _restore(arguments: GitArguments, paths: list[str], context: ToolContext) -> ToolOutput:
    if not paths:
        raise ToolError("say which paths to restore: their changes are lost", code="bad_arguments")
    revision = checked_revision(arguments.revision) or "HEAD"
    words = ["restore", f"--source={revision}", "--staged", "--worktree", "--no-recurse-submodules", "--", *paths]
    await git_or_fail(words, context, env=ENVIRONMENT)
    return ToolOutput(text=f"restored {', '.join(paths)[:1000]} as in {revision}")


def _checked_paths(paths: tuple[str, ...], context: ToolContext) -> list[str]:
    """Relative to the working directory, inside it, and none that no tool may change. Raises ToolError."""
    checked = []
    for path in paths:
        if "\0" in path:
            raise ToolError("a path cannot contain NUL", code="bad_arguments")
        relative = context.files.relative(path)
        if any(part.casefold() in PROTECTED for part in relative.split("/")):
            raise ToolError(f"{relative} belongs to git or to Otto; no tool changes it", code="protected")
        checked.append(relative)
    return checked


def touches(arguments: GitArguments) -> Facts:
    """The command as a rule about `git` would have it, and the paths that it names."""
    words = ("git", arguments.action, *((arguments.revision,) if arguments.revision else ()), *arguments.paths)
    writes = arguments.paths if arguments.action == "restore" else ()
    return Facts(programs=(words,), trees=tuple(arguments.paths), writes=tuple(writes))


GIT = Tool(
    name="git",
    description=(
        "Look at the git repository in the working directory, and commit to a branch of this session's own. Make "
        "small commits with a message that says why. Pushing, merging and settings are the user's."
    ),
    arguments=GitArguments,
    permissions=frozenset({"read", "write", "exec"}),
    idempotent=False,
    run=run,
    touches=touches,
    repeats=lambda arguments: arguments.action in LOOKING,
    timeout_s=60.0,
    max_concurrent=1,
)
