"""process_start, process_logs, process_list, process_stop: programs that live across calls, such as a dev server.

They are held like any program of the session, and die with it; with a worker that is lost they die as well, and the
next one lists them as lost.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ottod.errors import ToolError
from ottod.settings.units import plural
from ottod.tools.base import Facts, Processes, ProcessView, Tool, ToolContext, ToolOutput

FIRST_LOOK_S = 1.0
"""How long a start waits for an early end, and for first words."""
FIRST_LOOK_BYTES = 2000
MAX_WAIT_S = 60.0

ProcessName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$", description="What it is called, such as `web`.")
]


class StartArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run."""

    name: ProcessName
    command: Annotated[str, Meta(min_length=1, description="The command line, for bash (sh where there is none).")]
    cwd: Annotated[str, Meta(description="Where to run it, relative to the working directory.")] = "."


class NameArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which one."""

    name: ProcessName


class LogArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which output."""

    name: ProcessName
    cursor: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="Where to go on, as the last call said; without it the newest output."),
    ] = None
    wait_s: Annotated[
        float, Meta(ge=0, le=MAX_WAIT_S, description="Seconds to wait if there is nothing new behind the cursor.")
    ] = 0.0


class NoArguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing."""


async def start(arguments: StartArguments, context: ToolContext) -> ToolOutput:
    """Its first words, if it has some soon."""
    processes = _processes(context)
    view = await processes.start(name=arguments.name, command=arguments.command, cwd=arguments.cwd)
    await processes.wait_news(view.name, cursor=None, timeout_s=FIRST_LOOK_S)
    (view,) = (each for each in processes.list() if each.name == arguments.name)
    log = processes.logs(view.name, cursor=0, max_bytes=min(FIRST_LOOK_BYTES, context.max_output_bytes))
    head = f"[{describe(view)}; read on with process_logs from cursor {log.cursor}]"
    return ToolOutput(text=_joined(log.text, head), is_error=view.state != "running")


async def logs(arguments: LogArguments, context: ToolContext) -> ToolOutput:
    """A piece of output, and where the next one begins."""
    processes = _processes(context)
    if arguments.cursor is not None and arguments.wait_s:
        timeout_s = min(arguments.wait_s, context.timeout_s)
        await processes.wait_news(arguments.name, cursor=arguments.cursor, timeout_s=timeout_s)
    log = processes.logs(arguments.name, cursor=arguments.cursor, max_bytes=context.max_output_bytes)
    (view,) = (each for each in processes.list() if each.name == arguments.name)
    missed = f"[{plural(log.missed_bytes, 'byte')} before this are gone]\n" if log.missed_bytes else ""
    more = view.output_bytes - log.cursor
    rest = f", {plural(more, 'byte')} more" if more > 0 else ""
    tail = f"[{describe(view)}; cursor {log.cursor}{rest}]"
    return ToolOutput(text=missed + _joined(log.text, tail), truncated=bool(log.missed_bytes) or more > 0)


async def stop(arguments: NameArguments, context: ToolContext) -> ToolOutput:
    """How it ended."""
    view = await _processes(context).stop(arguments.name)
    return ToolOutput(text=describe(view))


async def list_all(arguments: NoArguments, context: ToolContext) -> ToolOutput:
    """One line for each."""
    views = _processes(context).list()
    lines = [f"{describe(view)}: {view.command.splitlines()[0][:200]}" for view in views]
    return ToolOutput(text="\n".join(lines) or "no background processes")


def describe(view: ProcessView) -> str:
    """A process in a few words."""
    match view.state:
        case "exited" if view.exit_status is not None and view.exit_status < 0:
            return f"{view.name} was killed by signal {-view.exit_status}"
        case "exited":
            return f"{view.name} has ended with exit status {view.exit_status}"
        case "lost":
            return f"{view.name} is lost: it died with an earlier process of this session; start it again"
        case "stopped":
            return f"{view.name} was stopped"
        case _:
            return f"{view.name} is running"


def _joined(text: str, note: str) -> str:
    body = text.rstrip("\n")
    return f"{body}\n{note}" if body else note


def _processes(context: ToolContext) -> Processes:
    if context.processes is None:
        raise ToolError("no background processes can be started here", code="no_processes")
    return context.processes


PROCESS_START = Tool(
    name="process_start",
    description=(
        "Start a command line that goes on running across calls: a development server, a watcher. It may do what "
        "shell may. It ends with process_stop, or with the session. For anything that ends by itself use shell."
    ),
    arguments=StartArguments,
    permissions=frozenset({"exec"}),
    idempotent=False,
    run=start,
    touches=lambda arguments: Facts(commands=(arguments.command,), cwd=arguments.cwd),
    timeout_s=30.0,
)

PROCESS_LOGS = Tool(
    name="process_logs",
    description=(
        "Read the output of a background process, standard output and error together, from a cursor on. Only the "
        "newest part is kept."
    ),
    arguments=LogArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=logs,
    touches=lambda arguments: Facts(),
    timeout_s=MAX_WAIT_S + 5,
)

PROCESS_LIST = Tool(
    name="process_list",
    description="List the background processes of this session, with what became of them.",
    arguments=NoArguments,
    permissions=frozenset({"read"}),
    idempotent=True,
    run=list_all,
    touches=lambda arguments: Facts(),
    timeout_s=10.0,
)

PROCESS_STOP = Tool(
    name="process_stop",
    description="End a background process and everything that it started.",
    arguments=NameArguments,
    permissions=frozenset({"exec"}),
    idempotent=True,
    run=stop,
    touches=lambda arguments: Facts(),
    timeout_s=30.0,
)

PROCESS_TOOLS: tuple[Tool[Any], ...] = (PROCESS_START, PROCESS_LOGS, PROCESS_LIST, PROCESS_STOP)
