"""`ottoctl agent …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import complete_agents
from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.commands.versions import Running, Versions, named_entry
from ottoctl.console import Console, encode_json
from ottoctl.exits import OK, USAGE
from ottoctl.findings import said
from ottod.errors import ConfigError, OttoError, RefusedError

if TYPE_CHECKING:
    from ottod.protocol.results import DefinitionFound
    from ottod.settings.agents import AgentEntry

app = typer.Typer(
    cls=QuickGroup, help="List, show, check and write agents", no_args_is_help=True, rich_markup_mode=None
)

Directory = Annotated[Path | None, typer.Option("--cwd", metavar="DIR", help="As seen from this directory (here)")]


@app.command("list", cls=QuickCommand)
@command
def list_(console: Console, cwd: Directory = None) -> int | None:
    """List the agents that a session here could be started with

    Example: `ottoctl agent list`
    """
    from ottoctl.agents import visible_agents
    from ottoctl.rendering.agents import agent_record, agents_table

    entries = visible_agents(cwd)
    if console.output == "text":
        console.write(agents_table(entries, width=console.width, color=console.color))
    else:
        console.records([agent_record(entry) for entry in entries])
    return None


@app.command("show", cls=QuickCommand)
@command
def show(
    console: Console,
    agent: Annotated[
        str,
        typer.Argument(
            metavar="AGENT[@DIGEST]", help="An agent's name, or one version", autocompletion=complete_agents
        ),
    ],
    cwd: Directory = None,
    running: Running = False,
    versions: Versions = False,
) -> int | None:
    """Show an agent as a session would get it, defaults included

    Sessions keep the definition that they were started with; with --running it is said which one that is. As
    NAME@DIGEST it is shown as it was, also if its file has changed or gone, as long as a session that was started
    with it is on record.

    Example: `ottoctl agent show coder`
    """
    from ottoctl.agents import agent_finder
    from ottoctl.rendering.agents import agent_page

    entry = named_entry(
        console,
        "agent",
        agent,
        find=lambda name: agent_finder(cwd).find(name),
        as_it_was=_as_it_was,
        running=running,
        versions=versions,
    )
    if entry is None:
        return None
    if entry.spec is None:
        raise entry.error or ConfigError(f"agent {entry.name} cannot be read", file=entry.source)
    if console.output == "text":
        console.write(agent_page(entry, color=console.color))
    else:
        console.record(entry.spec)
    return None


def _as_it_was(name: str, kept: DefinitionFound) -> AgentEntry:
    from ottod.settings.agents import AgentEntry

    return AgentEntry(name=name, layer="project", source=kept.definition.source, spec=kept.agent)


@app.command("validate", cls=QuickCommand)
@command
def validate(
    console: Console,
    names: Annotated[list[str] | None, typer.Argument(metavar="AGENT|FILE...", help="Names or files (all)")] = None,
    cwd: Directory = None,
) -> int | None:
    """Check agents; an error names file, line, column and the mend

    So does a warning, which leaves the exit status 0: the agent starts, and does not get all that its file says.

    Example: `ottoctl agent validate .otto/agents/coder.yml`
    """
    from ottoctl.agents import check_agent_here

    found = {name: check_agent_here(name, cwd) for name in names or _all_names(cwd)}
    if console.output == "text":
        for name, (errors, warnings) in found.items():
            if not errors:
                console.write(f"{name}: ok\n")
            for error in errors:
                console.error(error)
            for warning in warnings:
                console.warning(warning)
    else:
        records = [
            {"agent": name, "ok": not errors, "errors": said(errors), "warnings": said(warnings)}
            for name, (errors, warnings) in found.items()
        ]
        for text in (
            [encode_json(r) for r in records] if console.output == "jsonl" else [encode_json(records, indent=2)]
        ):
            console.write(text + "\n")
    return USAGE if any(check.errors for check in found.values()) else OK


@app.command("new", cls=QuickCommand)
@command
def new(
    console: Console,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits, - and _")],
    template: Annotated[
        str, typer.Option("--from", metavar="AGENT", help="Start from this agent instead of the commented template")
    ] = "",
    user: Annotated[bool, typer.Option("--user", help="For all projects, in the user's own directory")] = False,
    cwd: Directory = None,
) -> int | None:
    """Write a new agent, with comments, to .otto/agents/

    Example: `ottoctl agent new release-notes`
    """
    from ottoctl.scaffold import check_name, scaffold

    check_name(name)
    text = scaffold(name, _source_of(template, cwd) if template else "")
    file = _agents_dir(cwd, user=user) / f"{name}.yml"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise RefusedError(f"{file} exists already", mend="choose another name, or edit the file") from error
    except OSError as error:
        raise OttoError(f"cannot write {file}: {(error.strerror or str(error)).lower()}") from error
    console.write(f"{file}\n")
    console.message(f'edit it, then: ottoctl run {name} "…"')
    return None


def _all_names(cwd: Path | None) -> list[str]:
    from ottoctl.agents import visible_agents

    return [entry.name for entry in visible_agents(cwd)]


def _source_of(agent: str, cwd: Path | None) -> str:
    from ottoctl.agents import agent_finder

    return Path(agent_finder(cwd).find(agent).source).read_text(encoding="utf-8")


def _agents_dir(cwd: Path | None, *, user: bool) -> Path:
    if user:
        import os

        from ottod.settings.paths import Paths

        return Paths.from_env(os.environ, uid=os.getuid()).agents_dir
    return (cwd or Path()) / ".otto" / "agents"
