"""The artifacts of a workflow as files: each as it is, and what is no Markdown once more as a page for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ottod.protocol.artifact_kinds import form_of
from ottod.protocol.artifacts import ArtifactInfo

SUFFIXES = {"markdown": ".md", "diff": ".diff", "json": ".json"}
FENCE = "````"


def write_files(artifacts: Sequence[ArtifactInfo], contents: dict[str, bytes], directory: Path) -> dict[str, Path]:
    """Puts the newest version of each name into files; gives those that hold the content itself, by artifact.

    `artifacts` are the oldest first, `contents` by their ids.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = {}
    for artifact in {each.name: each for each in artifacts}.values():
        content = contents[artifact.artifact]
        path = written[artifact.artifact] = directory / file_name(artifact)
        path.write_bytes(content)
        if path.suffix != ".md":
            path.with_suffix(".md").write_text(page(artifact, content))
    return written


def file_name(artifact: ArtifactInfo) -> str:
    """`ticket.md`, `code_diff.diff`, `review_report.json`; a name with an ending of its own stays."""
    form = form_of(artifact.kind)
    suffix = SUFFIXES[form.form] if form is not None else ".md"
    return artifact.name if "." in artifact.name else artifact.name + suffix


def page(artifact: ArtifactInfo, content: bytes) -> str:
    """A diff or a report as Markdown."""
    head = f"# {artifact.name}, version {artifact.version}\n\nBy {artifact.agent}, {artifact.artifact}.\n"
    form = form_of(artifact.kind)
    if form is None or form.form != "json":
        return f"{head}\n{FENCE}diff\n{content.decode(errors='replace').rstrip()}\n{FENCE}\n"
    report = msgspec.json.decode(content)
    return head + "".join(f"\n**{key}**: {_told(value)}\n" for key, value in report.items())


def _told(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return "".join(f"\n- {_finding(each)}" for each in value) or "none"


def _finding(each: Any) -> str:
    if not isinstance(each, dict):
        return str(each)
    return "; ".join(f"{key}: {value}" for key, value in each.items())
