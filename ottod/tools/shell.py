"""shell: a command line, in confinement."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, ProgramResult, Tool, ToolContext, ToolOutput
from ottod.tools.keep_whole import MAX_KEPT_BYTES, keep_output

QUIET = {"PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0", "TERM": "dumb", "NO_COLOR": "1"}
"""Nobody sits at a terminal: no pagers, no prompts, no colours."""


class ShellArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run."""

    command: Annotated[str, Meta(min_length=1, description="The command line, for bash (sh where there is none).")]
    cwd: Annotated[str, Meta(description="Where to run it, relative to the working directory.")] = "."
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Seconds after which it is killed, whatever it prints.")
    ] = None


async def run(arguments: ShellArguments, context: ToolContext) -> ToolOutput:
    """Standard output and error as they came, then how it ended."""
    timeout_s = min(arguments.timeout_s or context.timeout_s, context.timeout_s)
    result = await run_shell(arguments.command, context, cwd=arguments.cwd, timeout_s=timeout_s)
    ending = describe_ending(result, timeout_s)
    shown = await keep_output(result.output, context, name="shell-output.txt", is_truncated=result.truncated)
    body = shown.text.rstrip("\n")
    is_failure = result.ended == "timeout" or result.exit_status != 0
    return ToolOutput(
        text=f"{body}\n{ending}" if body and ending else body or ending or "(no output)",
        is_error=is_failure,
        truncated=shown.is_cut,
        exit_status=result.exit_status,
        data={"duration_ms": result.duration_ms, "total_bytes": result.total_bytes},
    )


async def run_shell(command: str, context: ToolContext, *, cwd: str = ".", timeout_s: float) -> ProgramResult:
    """Runs a command line by bash, or by sh where bash is missing. Raises ToolError if neither starts.

    Its output may be longer than what can be shown.
    """
    for argv in (["bash", "--noprofile", "--norc", "-c", command], ["/bin/sh", "-c", command]):
        try:
            return await context.programs.run(
                argv,
                timeout_s=timeout_s,
                max_output_bytes=MAX_KEPT_BYTES,
                cwd=cwd,
                env={**QUIET, **context.key_env},
                on_output=context.stream,
            )
        except ToolError as error:
            if error.code != "no_program":
                raise
    raise ToolError("neither bash nor sh can be started here", code="no_program")


def describe_ending(result: ProgramResult, timeout_s: float) -> str:
    """How a program ended, in brackets; empty if there is nothing to say."""
    if result.ended == "timeout":
        return f"[killed: it ran longer than {timeout_s:g} s]"
    parts = []
    if result.exit_status < 0:
        parts.append(f"killed by signal {-result.exit_status}")
    elif result.exit_status > 0:
        parts.append(f"exit status {result.exit_status}")
    if result.leftovers:
        parts.append(f"{plural(result.leftovers, 'background process')} killed: nothing outlives a call")
    return f"[{'; '.join(parts)}]" if parts else ""


SHELL = Tool(
    name="shell",
    description=(
        "Run a command line in the working directory. It may write there and in $TMPDIR, nowhere else. Output is "
        "standard output and error together. When the call ends, background processes are killed."
    ),
    arguments=ShellArguments,
    permissions=frozenset({"exec"}),
    idempotent=False,
    run=run,
    touches=lambda arguments: Facts(commands=(arguments.command,), cwd=arguments.cwd),
    timeout_s=120.0,
)
