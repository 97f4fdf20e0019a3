"""`ottoctl artifact …`: the files that sessions have kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ottoctl.commands.arguments import complete_sessions
from ottoctl.commands.frame import command
from ottoctl.commands.quick import QuickCommand, QuickGroup
from ottoctl.console import Console
from ottod.errors import OttoError

if TYPE_CHECKING:
    from ottod.protocol.artifacts import ArtifactInfo

app = typer.Typer(
    cls=QuickGroup, help="List, show and export what sessions have kept", no_args_is_help=True, rich_markup_mode=None
)

Artifact = Annotated[str, typer.Argument(metavar="ARTIFACT", help="An id, the beginning of one, or a name")]
SessionOption = Annotated[
    str,
    typer.Option(
        "--session",
        metavar="ID",
        help="Only of the tree that this session belongs to",
        autocompletion=complete_sessions,
    ),
]
Version = Annotated[int, typer.Option("--version", min=0, metavar="N", help="Which version of a name (the newest)")]


@app.callback()
def artifact() -> None:
    """List, show and export what sessions have kept"""


@app.command("list", cls=QuickCommand)
@command
def list_(
    console: Console,
    session: SessionOption = "",
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Only of this name")] = "",
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="Only of this kind, such as design")] = "",
    all_versions: Annotated[bool, typer.Option("-a", "--all", help="Every version, not only the newest")] = False,
    full: Annotated[bool, typer.Option("--full", help="Whole ids")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, metavar="N", help="The most to list")] = 1000,
) -> int | None:
    """List artifacts, newest first

    Example: `ottoctl artifact list --kind code_diff`
    """
    with console.connect() as otto:
        found = otto.artifacts(session=session, name=name, kind=kind, all_versions=all_versions, limit=limit)
    if console.output != "text":
        console.records(list(found))
    elif found:
        import time

        from ottoctl.rendering.artifacts import artifacts_table

        console.write(
            artifacts_table(found, now_ns=time.time_ns(), width=console.width, color=console.color, full_ids=full)
        )
    else:
        console.message("there are no artifacts")
    return None


@app.command("show", cls=QuickCommand)
@command
def show(console: Console, artifact: Artifact, session: SessionOption = "", version: Version = 0) -> int | None:
    """Print an artifact; with -o json what is known of it

    Example: `ottoctl artifact show design.md --session 7f3k`
    """
    with console.connect() as otto:
        info = otto.artifact(artifact, session=session, version=version)
        if console.output != "text":
            console.record(info)
            return None
        content = otto.read_artifact(info)
    if console.is_tty:
        from ottoctl.rendering.ansi import printable

        if b"\0" in content[:8192]:
            raise OttoError(f"{info.name} is binary", mend=f"ottoctl artifact export {info.artifact}", code="usage")
        text = content.decode("utf-8", "replace")
        console.write("\n".join(printable(line) for line in text.split("\n")))
    else:
        console.flush()
        console.write_bytes(content)
    return None


@app.command("where", cls=QuickCommand)
@command
def where(console: Console, artifact: Artifact, session: SessionOption = "", version: Version = 0) -> int | None:
    """Show where an artifact was delivered by its workflow's sinks, and why not

    Example: `ottoctl artifact where design.md --session 7f3k`
    """
    with console.connect() as otto:
        info = otto.artifact(artifact, session=session, version=version)
    if console.output != "text":
        console.records(list(info.deliveries))
    elif info.deliveries:
        import time

        from ottoctl.rendering.artifacts import deliveries_table

        console.write(
            deliveries_table(info.deliveries, now_ns=time.time_ns(), width=console.width, color=console.color)
        )
    else:
        console.message(f"{info.name}@{info.version} was delivered nowhere: it is in Otto's index only")
    return None


@app.command("export", cls=QuickCommand)
@command
def export(
    console: Console,
    artifact: Artifact,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Where to (its own name, here); a directory will do")
    ] = None,
    session: SessionOption = "",
    version: Version = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there")] = False,
) -> int | None:
    """Write an artifact to a file, and print the file's name

    Example: `ottoctl artifact export art-7f3k --to design.md`
    """
    with console.connect() as otto:
        info = otto.artifact(artifact, session=session, version=version)
        path = _target(info, to)
        if path.exists() and not force:
            raise OttoError(f"{path} exists", mend="give --force to replace it, or another name", code="usage")
        content = otto.read_artifact(info)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OttoError(f"cannot write {path}: {error.strerror}") from error
    if console.output == "text":
        console.write(f"{path}\n")
    else:
        console.record(info)
    return None


def _target(info: ArtifactInfo, to: Path | None) -> Path:
    """The daemon checks names as well; here it is where they become paths."""
    if to is not None and not to.is_dir():
        return to
    name = Path(info.name).name
    if name != info.name or name in ("", ".", ".."):
        raise OttoError(f"{info.name!r} is no file name", mend="name the file with --to", code="usage")
    return (to or Path()) / name
