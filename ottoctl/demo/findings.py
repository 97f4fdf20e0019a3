"""What a workflow of the demonstration has left, found by looking: index, disk, decision graph, pytest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ottoctl.client import Otto
from ottoctl.demo.files import write_files
from ottoctl.demo.stage import Stage, TestRun
from ottoctl.rendering.steps import StepRow, step_rows
from ottoctl.results import RunResult
from ottoctl.session import Session
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.decisions import DecisionEdge, DecisionFilter, DecisionNode
from ottod.protocol.workflows import Step

REASONED = frozenset({"goal", "decision", "option", "action", "outcome"})
"""Kinds of nodes without which a graph tells no story."""


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one workflow. `reviews` and `reports` are the versions of those artifacts, the oldest first.

    `first_try` are the tests of the end on the code that the reviewer saw first.
    """

    workflow: str
    task: str
    result: RunResult
    rows: tuple[StepRow, ...]
    artifacts: tuple[ArtifactInfo, ...]
    files: dict[str, Path]
    wanted: tuple[str, ...]
    reviews: tuple[dict[str, Any], ...] = ()
    reports: tuple[dict[str, Any], ...] = ()
    before: TestRun
    first_try: TestRun | None = None
    after: TestRun
    diff: str = ""
    nodes: tuple[DecisionNode, ...] = ()
    edges: tuple[DecisionEdge, ...] = ()
    usd_micros: int | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the demonstration says, and whether it is so."""

    text: str
    holds: bool


async def look(
    otto: Otto, session: Session, stage: Stage, *, task: str, before: TestRun, wanted: tuple[str, ...]
) -> Findings:
    """Everything, once the workflow has ended; keeps its artifacts as files of the project."""
    result = await session.wait()
    listed = {info.session: info for info in await otto.list(all=True, tree=session.id, limit=10_000)}
    artifacts = sorted(
        await otto.artifacts(session=session.id, all_versions=True), key=lambda a: (a.at_ns, a.version)
    )
    contents = {a.artifact: await otto.read_artifact(a) for a in artifacts}
    reviews = [a for a in artifacts if a.kind == "review_report"]
    seen_ns = reviews[0].at_ns if reviews else 0
    later = [contents[a.artifact] for a in artifacts if a.name == "code_diff" and a.at_ns > seen_ns]
    graph = await otto.decisions(DecisionFilter(tree=session.id, limit=1000, has_text=True))
    first_try = None
    if reviews and later:
        first_try = await asyncio.to_thread(stage.tests_without, later, stage.directory.with_name("first-try"))
    return Findings(
        workflow=stage.workflow,
        task=task,
        result=result,
        rows=tuple(step_rows(await session.journal(), listed, now_ns=result.info.ended_at_ns)),
        artifacts=tuple(artifacts),
        files=write_files(artifacts, contents, stage.directory / ".otto" / "artifacts" / session.id),
        wanted=wanted,
        reviews=tuple(msgspec.json.decode(contents[a.artifact]) for a in reviews),
        reports=tuple(msgspec.json.decode(contents[a.artifact]) for a in artifacts if a.name == "test_report"),
        before=before,
        first_try=first_try,
        after=await asyncio.to_thread(stage.tests),
        diff=await asyncio.to_thread(stage.diff),
        nodes=tuple(sorted(graph.nodes, key=lambda node: (node.at_ns, node.node))),
        edges=graph.edges,
        usd_micros=_cost(info.usage.usd_micros for info in listed.values() if info.kind == "agent"),
    )


def wanted_artifacts(steps: Sequence[Step]) -> Iterator[str]:
    """The names that a workflow's own file says its steps must leave."""
    for step in steps:
        yield from (output.name for output in step.outputs if output.required)
        yield from wanted_artifacts(step.steps)


def claims(found: Findings, *, is_scripted: bool) -> list[Claim]:
    """What is said of a workflow that went well, each held against what was found.

    A model that thinks may be right at once: that the first try is sent back is claimed of scripts only.
    """
    verdicts = [review["verdict"] for review in found.reviews]
    on_disk = {found_by.name for found_by in found.artifacts if _is_on_disk(found_by, found.files)}
    missing = [name for name in found.wanted if name not in on_disk]
    out = [
        Claim(text="the workflow completed", holds=found.result.ok),
        Claim(text="the reviewer approved at last", holds=verdicts[-1:] == ["approved"]),
        Claim(text=f"its tests pass: {found.after.said}", holds=found.after.is_green),
        Claim(
            text=f"the {len(found.wanted)} artifacts that were to be are in the index,"
            " and on the disk with the same SHA-256" + (f"; not {', '.join(missing)}" if missing else ""),
            holds=not missing,
        ),
    ]
    if found.reports:
        report = found.reports[-1]
        is_true = report["passed"] == found.after.passed and report["failed"] == found.after.failed
        out.append(Claim(text=f"the last test report is true: {report['passed']} passed", holds=is_true))
    if is_scripted:
        out += _claims_of_scripts(found, verdicts)
    return out


def _claims_of_scripts(found: Findings, verdicts: list[str]) -> list[Claim]:
    blockers = found.reviews[0]["blockers"] if found.reviews else []
    kinds = {node.kind for node in found.nodes}
    joined = {edge.source for edge in found.edges} | {edge.target for edge in found.edges}
    alone = [node.title for node in found.nodes if node.node not in joined]
    first = found.first_try
    out = [
        Claim(
            text="the reviewer said NEEDS REVISION once, and named what blocks",
            holds=verdicts.count("needs_revision") == 1 and verdicts[:1] == ["needs_revision"] and bool(blockers),
        ),
        Claim(
            text="with reason: the tests of the end fail on what was reviewed first: "
            + (first.said if first is not None else "there is nothing to try"),
            holds=first is not None and first.failed > 0,
        ),
        Claim(
            text=f"the decision graph tells why: {len(found.nodes)} nodes, {len(found.edges)} edges"
            + (f"; alone: {', '.join(alone)}" if alone else ""),
            holds=kinds >= REASONED and not alone,
        ),
    ]
    if found.workflow == "bug-fix-loop":
        out.append(Claim(text=f"its tests failed before: {found.before.said}", holds=found.before.failed > 0))
    return out


def _is_on_disk(artifact: ArtifactInfo, written: dict[str, Path]) -> bool:
    path = written.get(artifact.artifact)
    return path is not None and path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == artifact.digest


def _cost(amounts: Iterator[int | None]) -> int | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None
