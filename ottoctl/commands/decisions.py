"""`ottoctl decisions …`: what the agents of a project have decided, why, and how sure one can be of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ottoctl.commands.arguments import complete_sessions
from ottoctl.commands.frame import command, completed, one_of
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console, encode_json
from ottod.errors import OttoError
from ottod.protocol.decisions import MAX_LISTED, WEAK_BELOW, DecisionFilter, NodeKind, NodeStatus

if TYPE_CHECKING:
    from ottod.protocol.results import DecisionsFound

app = typer.Typer(
    cls=QuickGroup, help="List, show and draw what agents have decided", no_args_is_help=True, rich_markup_mode=None
)

KINDS: tuple[str, ...] = get_args(NodeKind)
STATUSES: tuple[str, ...] = get_args(NodeStatus)
DRAWINGS = ("text", "json", "jsonl", "mermaid", "dot")

Project = Annotated[
    str, typer.Option("--project", metavar="DIR", help="Of the project of this directory (the current one)")
]
Tree = Annotated[
    str,
    typer.Option(
        "--tree", metavar="ID", help="Of the tree that this session belongs to", autocompletion=complete_sessions
    ),
]
SessionOption = Annotated[
    str, typer.Option("--session", metavar="ID", help="Of this session", autocompletion=complete_sessions)
]
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind", metavar="KIND", help="Only of this kind", callback=one_of(KINDS), autocompletion=completed(KINDS)
    ),
]
Status = Annotated[
    str | None,
    typer.Option(
        "--status",
        metavar="STATUS",
        help="Only of this status",
        callback=one_of(STATUSES),
        autocompletion=completed(STATUSES),
    ),
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="An id, or the beginning of one")]


@app.callback()
def decisions() -> None:
    """List, show and draw what agents have decided"""


@app.command("list", cls=QuickCommand)
@command
def list_(
    console: Console,
    project: Project = "",
    tree: Tree = "",
    session: SessionOption = "",
    kind: Kind = None,
    status: Status = None,
    text: Annotated[str, typer.Option("--text", metavar="WORDS", help="Only what has all of these words")] = "",
    weak: Annotated[
        bool, typer.Option("--weak", help=f"Only what is active and less sure than {WEAK_BELOW}, the weakest first")
    ] = False,
    pending: Annotated[
        bool, typer.Option("--pending", help="Only options that nobody has chosen or rejected")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Whole ids")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_LISTED, metavar="N", help="The most to list")] = 200,
) -> int | None:
    """List nodes of the decision graph, newest first

    Example: `ottoctl decisions list --kind decision --status active`
    """
    wanted = _filter(
        project,
        tree,
        session,
        kinds=(kind,) if kind else (),
        statuses=(status,) if status else (),
        text=text,
        weak_below=WEAK_BELOW if weak else None,
        pending=pending,
        limit=limit,
        has_text=console.output != "text",
    )
    found = _ask(console, wanted)
    if console.output != "text":
        console.records(list(found.nodes))
    elif found.nodes:
        import time

        from ottoctl.rendering.decisions import decisions_table

        console.write(
            decisions_table(
                found.nodes, now_ns=time.time_ns(), width=console.width, color=console.color, full_ids=full
            )
        )
        _tell_of_more(console, found)
    else:
        _tell_of_none(console, found)
    return None


@app.command("show", cls=QuickCommand)
@command
def show(console: Console, node: Node) -> int | None:
    """Print one node, and what it is joined to

    Example: `ottoctl decisions show d-7f3k2`
    """
    with console.connect() as otto:
        (meant,) = otto.decisions(DecisionFilter(node=node, depth=0, has_text=True)).nodes
        around = otto.decisions(DecisionFilter(node=meant.node, project=meant.project))
    edges = [edge for edge in around.edges if meant.node in (edge.source, edge.target)]
    if console.output != "text":
        import msgspec

        console.record({**msgspec.to_builtins(meant), "edges": edges})
        return None
    from ottoctl.rendering.decisions import node_text

    console.write(node_text(meant, others=around.nodes, edges=edges, color=console.color))
    return None


@app.command("graph", cls=QuickCommand)
@command
def graph(
    console: Console,
    project: Project = "",
    tree: Tree = "",
    session: SessionOption = "",
    node: Annotated[str, typer.Option("--node", metavar="NODE", help="Only what is around this node")] = "",
    depth: Annotated[int, typer.Option("--depth", min=0, max=10, metavar="N", help="How many edges around it")] = 2,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="|".join(DRAWINGS),
            help="How to draw",
            callback=one_of(DRAWINGS),
            autocompletion=completed(DRAWINGS),
        ),
    ] = None,
) -> int | None:
    """Draw the decision graph: a tree, Mermaid, or DOT for Graphviz

    Example: `ottoctl decisions graph -o dot | dot -Tsvg > decisions.svg`
    """
    form = output or console.output
    found = _ask(
        console,
        _filter(project, tree, session, node=node, depth=depth, limit=MAX_LISTED, has_text=form in ("json", "jsonl")),
    )
    from ottoctl.rendering import decisions as rendering

    # Oldest first: a drawing tells what happened.
    nodes = sorted(found.nodes, key=lambda each: (each.at_ns, each.node))
    match form:
        case "json" | "jsonl":
            record = rendering.graph_record(nodes, found.edges, found.truncated)
            console.write(encode_json(record, indent=2 if form == "json" else 0) + "\n")
        case "mermaid":
            console.write(rendering.mermaid(nodes, found.edges))
        case "dot":
            console.write(rendering.dot(nodes, found.edges))
        case _ if nodes:
            console.write(rendering.decision_tree(nodes, found.edges, color=console.color))
        case _:
            _tell_of_none(console, found)
    _tell_of_more(console, found)
    return None


@app.command("forget", cls=QuickCommand)
@command
def forget(
    console: Console,
    project: Annotated[str, typer.Option("--project", metavar="DIR", help="The project of this directory")],
) -> int | None:
    """Forget the whole decision graph of a project

    Example: `ottoctl decisions forget --project .`
    """
    with console.connect() as otto:
        count = otto.forget_decisions(project)
    from ottod.settings.units import plural

    console.message(f"{plural(count, 'node')} {'is' if count == 1 else 'are'} forgotten")
    return None


def _filter(project: str, tree: str, session: str, **more: object) -> DecisionFilter:
    import msgspec

    if sum(map(bool, (project, tree, session))) > 1:
        raise OttoError("give one of --project, --tree and --session", code="usage")
    return msgspec.convert({"project": project, "tree": tree, "session": session, **more}, DecisionFilter)


def _ask(console: Console, wanted: DecisionFilter) -> DecisionsFound:
    with console.connect() as otto:
        return otto.decisions(wanted)


def _tell_of_none(console: Console, found: DecisionsFound) -> None:
    where = f" in {found.project}" if found.project else ""
    console.message(f"there are no such decisions{where}")


def _tell_of_more(console: Console, found: DecisionsFound) -> None:
    if found.truncated:
        console.message("there are more; ask more narrowly, or give --limit")
