"""`ottoctl workflow …`: what workflows there are, and what they would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console, encode_json
from ottoctl.exits import OK, USAGE
from ottod.errors import ConfigError

app = typer.Typer(
    cls=QuickGroup, help="List, show, check, draw and write workflows", no_args_is_help=True, rich_markup_mode=None
)

Directory = Annotated[Path | None, typer.Option("--cwd", metavar="DIR", help="As seen from this directory (here)")]


def complete_workflows(incomplete: str) -> list[tuple[str, str]]:
    """Names of workflows that can be seen from here."""
    from ottoctl.workflows import workflow_finder
    from ottod.errors import OttoError

    try:
        entries = workflow_finder().entries()
    except OttoError:
        return []
    return [(e.name, (e.spec.description if e.spec else "")[:60]) for e in entries if e.name.startswith(incomplete)]


WorkflowName = Annotated[
    str, typer.Argument(metavar="WORKFLOW", help="A workflow's name, or a file", autocompletion=complete_workflows)
]


@app.command("list", cls=QuickCommand)
@command
def list_(console: Console, cwd: Directory = None) -> int | None:
    """List the workflows that could be run here

    Example: `ottoctl workflow list`
    """
    from ottoctl.rendering.workflows import workflow_record, workflows_table
    from ottoctl.workflows import workflow_finder

    entries = workflow_finder(cwd).entries()
    if console.output == "text":
        console.write(workflows_table(entries, width=console.width, color=console.color))
    else:
        console.records([workflow_record(entry) for entry in entries])
    return None


@app.command("show", cls=QuickCommand)
@command
def show(console: Console, workflow: WorkflowName, cwd: Directory = None) -> int | None:
    """Show a workflow: what holds for it, and its steps as a tree

    Example: `ottoctl workflow show bug-fix-loop`
    """
    from ottoctl.rendering.workflows import workflow_page
    from ottoctl.workflows import workflow_entry

    entry = workflow_entry(workflow, cwd)
    if entry.spec is None:
        raise entry.errors[0]
    if console.output == "text":
        console.write(workflow_page(entry, color=console.color))
    else:
        console.record(entry.spec)
    return None


@app.command("validate", cls=QuickCommand)
@command
def validate(
    console: Console,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="WORKFLOW|FILE...", help="Names or files (all)")
    ] = None,
    cwd: Directory = None,
) -> int | None:
    """Check workflows; each mistake has file, line, column and the mend

    Example: `ottoctl workflow validate .otto/workflows/release.yml`
    """
    from ottoctl.workflows import workflow_finder, workflow_problems

    if names:
        found = {name: workflow_problems(name, cwd) for name in names}
    else:
        found = {entry.name: list(entry.errors) for entry in workflow_finder(cwd).entries()}
    if console.output == "text":
        for name, errors in found.items():
            if not errors:
                console.write(f"{name}: ok\n")
            for error in errors:
                console.error(error)
    else:
        records = [_verdict(name, errors) for name, errors in found.items()]
        console.write(
            "".join(encode_json(record) + "\n" for record in records)
            if console.output == "jsonl"
            else encode_json(records, indent=2) + "\n"
        )
    return USAGE if any(found.values()) else OK


def _verdict(name: str, errors: list[ConfigError]) -> dict[str, object]:
    return {
        "workflow": name,
        "ok": not errors,
        "errors": [
            {"message": e.message, "file": e.file, "line": e.line, "column": e.column, "mend": e.mend} for e in errors
        ],
    }
