"""`ottoctl workflow …`: what workflows there are, and what they would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.frame import command, completed, one_of
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.commands.versions import Running, Versions, named_entry
from ottoctl.console import Console, encode_json
from ottoctl.exits import OK, USAGE
from ottoctl.findings import said
from ottod.errors import OttoError, RefusedError

if TYPE_CHECKING:
    from ottod.protocol.results import DefinitionFound
    from ottod.protocol.workflows import WorkflowSpec
    from ottod.settings.workflows import WorkflowEntry

app = typer.Typer(
    cls=QuickGroup, help="List, show, check, draw and write workflows", no_args_is_help=True, rich_markup_mode=None
)

GRAPH_FORMATS = ("text", "mermaid", "dot")

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
def show(
    console: Console,
    workflow: Annotated[
        str,
        typer.Argument(
            metavar="WORKFLOW[@DIGEST]",
            help="A workflow's name, a file, or one version",
            autocompletion=complete_workflows,
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="What it would do: order, agents, inputs and outputs, budgets")
    ] = False,
    task: Annotated[str, typer.Option("--task", help="With --dry-run: the task, which routes may depend on")] = "",
    cwd: Directory = None,
    running: Running = False,
    versions: Versions = False,
) -> int | None:
    """Show a workflow: what holds for it, and its steps as a tree

    As NAME@DIGEST it is shown as it was, also if its file has changed or gone, as long as a session that was started
    with it is on record.

    Example: `ottoctl workflow show bug-fix-loop --dry-run`
    """
    from ottoctl.rendering.workflows import workflow_page
    from ottoctl.workflows import is_file, workflow_entry

    entry = named_entry(
        console,
        "workflow",
        workflow,
        find=lambda name: workflow_entry(name, cwd),
        as_it_was=_as_it_was,
        running=running,
        versions=versions,
        is_file=is_file(workflow),
    )
    if entry is None:
        return None
    if entry.spec is None:
        raise entry.errors[0]
    if dry_run:
        show_plan(console, entry.spec, task, cwd)
    elif console.output == "text":
        console.write(workflow_page(entry, color=console.color))
    else:
        console.record(entry.spec)
    return None


def _as_it_was(name: str, kept: DefinitionFound) -> WorkflowEntry:
    from ottod.settings.workflows import WorkflowEntry

    return WorkflowEntry(name=name, layer="project", source=kept.definition.source, spec=kept.workflow)


def show_plan(console: Console, spec: WorkflowSpec, task: str, cwd: Path | None) -> None:
    """Prints what a workflow would do with a task, here; starts nothing."""
    from ottoctl.rendering.workflow_plan import plan_rows, plan_table
    from ottoctl.workflows import workflow_plan

    plan = workflow_plan(spec, task, cwd)
    if console.output == "text":
        console.write(plan_table(plan, width=console.width, color=console.color))
    else:
        console.records(plan_rows(plan))


@app.command("graph", cls=QuickCommand)
@command
def graph(
    console: Console,
    workflow: WorkflowName,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="|".join(GRAPH_FORMATS),
            help="What to draw it as (text)",
            callback=one_of(GRAPH_FORMATS),
            autocompletion=completed(GRAPH_FORMATS),
        ),
    ] = None,
    cwd: Directory = None,
) -> int | None:
    """Draw a workflow: as a tree, for Mermaid, or for Graphviz

    Example: `ottoctl workflow graph refactor-swarm -o mermaid`
    """
    from ottoctl.rendering.workflow_graph import dot, mermaid
    from ottoctl.rendering.workflow_tree import workflow_tree
    from ottoctl.workflows import workflow_entry

    entry = workflow_entry(workflow, cwd)
    if entry.spec is None:
        raise entry.errors[0]
    if output in ("mermaid", "dot"):
        console.write((mermaid if output == "mermaid" else dot)(entry.spec))
    else:
        console.write(workflow_tree(entry.spec, color=console.color))
    return None


@app.command("new", cls=QuickCommand)
@command
def new(
    console: Console,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits, - and _")],
    template: Annotated[
        str, typer.Option("--from", metavar="WORKFLOW", help="Start from this workflow instead of the template")
    ] = "",
    user: Annotated[bool, typer.Option("--user", help="For all projects, in the user's own directory")] = False,
    cwd: Directory = None,
) -> int | None:
    """Write a new workflow, with comments, to .otto/workflows/

    Example: `ottoctl workflow new release --from plan-implement-review`
    """
    from ottoctl.scaffold import check_name, scaffold_workflow
    from ottoctl.workflows import workflow_entry, workflows_dir

    check_name(name, what="a workflow's name")
    source = Path(workflow_entry(template, cwd).source).read_text(encoding="utf-8") if template else ""
    file = workflows_dir(cwd, user=user) / f"{name}.yml"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as out:
            out.write(scaffold_workflow(name, source))
    except FileExistsError as error:
        raise RefusedError(f"{file} exists already", mend="choose another name, or edit the file") from error
    except OSError as error:
        raise OttoError(f"cannot write {file}: {(error.strerror or str(error)).lower()}") from error
    console.write(f"{file}\n")
    console.message(f"edit it, then: ottoctl workflow validate {name}")
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
    """Check workflows; an error names file, line, column and the mend

    So does a warning, which leaves the exit status 0: a permission rule for an agent that there is not.

    Example: `ottoctl workflow validate .otto/workflows/release.yml`
    """
    from ottoctl.workflows import check_workflow_here, workflow_finder

    known = names or [entry.name for entry in workflow_finder(cwd).entries()]
    found = {name: check_workflow_here(name, cwd) for name in known}
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
            {"workflow": name, "ok": not errors, "errors": said(errors), "warnings": said(warnings)}
            for name, (errors, warnings) in found.items()
        ]
        console.write(
            "".join(encode_json(record) + "\n" for record in records)
            if console.output == "jsonl"
            else encode_json(records, indent=2) + "\n"
        )
    return USAGE if any(check.errors for check in found.values()) else OK
