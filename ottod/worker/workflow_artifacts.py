"""What the steps of a workflow hand to each other: inputs as they are told, outputs as they are checked and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ottod.core.answer import read_answer
from ottod.core.step_brief import Handed, Stand, answer_output
from ottod.core.workflow_condition import asked_fields, read_fields
from ottod.errors import UNDECODABLE, OttoError, ToolError
from ottod.isolation.beneath import BeneathFiles
from ottod.protocol.artifacts import MAX_ARTIFACT_BYTES, ArtifactInfo
from ottod.protocol.journal import ArtifactFacts, StepEnded, WorkflowBegun, WorkflowEntry
from ottod.protocol.workflows import Output, Step, WorkflowInput, WorkflowSpec
from ottod.settings.workflow_start import schema_complaint
from ottod.worker.artifacts import Artifacts

INPUTS_DIR = "inputs"
"""In the session's directory: what the client gave."""
Summarize = Callable[[ArtifactInfo, str], Awaitable[Stand | None]]
"""Gives what stands for a long text; None if nobody could write it."""


class StepArtifacts:
    """Of one workflow: its inputs, and what it has collected of its steps. What else the tree has is not its own.

    `summarize` writes what stands for an input that is long.
    """

    def __init__(self, spec: WorkflowSpec, artifacts: Artifacts, *, summarize: Summarize) -> None:
        self._spec = spec
        self._artifacts = artifacts
        self._summarize = summarize
        self._asked = asked_fields(spec)
        self._newest: dict[str, int] = {}
        """The version of each name that is handed on."""
        self._are_inputs_noted = True

    def heard(self, entry: WorkflowEntry) -> None:
        """Something was noted: what it collected is handed on from now on."""
        match entry:
            case WorkflowBegun():
                self._are_inputs_noted = entry.artifacts is not None
                self._take(entry.artifacts or ())
            case StepEnded():
                self._take(entry.artifacts)
            case _:
                pass

    def _take(self, artifacts: Sequence[str]) -> None:
        for name, version in map(_parted, artifacts):
            self._newest[name] = max(version, self._newest.get(name, 0))

    # ------------------------------------------------------------ what the workflow begins with

    async def take_inputs(self, *, session_dir: str, cwd: str, hidden: Sequence[str]) -> tuple[str, ...]:
        """Keeps what the client gave, and what lies in files of the working directory; gives that as `NAME@VERSION`.

        Raises OttoError.
        """
        given, taken = Path(session_dir) / INPUTS_DIR, []
        files = BeneathFiles(cwd, hidden=hidden)
        try:
            for each in self._spec.inputs:
                data = await asyncio.to_thread(_read_input, each, given, files)
                if data is None:
                    continue
                if each.schema:
                    _check_schema(each.name, data, each.schema)
                info = await self._artifacts.write(data, name=each.name, kind=each.kind, key=f"input:{each.name}")
                taken.append(f"{info.name}@{info.version}")
        finally:
            files.close()
        return tuple(taken)

    # ------------------------------------------------------------ inputs of steps

    async def sources(self, step: Step) -> tuple[str, ...]:
        """The step's inputs as they are now, `NAME@VERSION`, without what is not there. Raises ToolError."""
        if not self._are_inputs_noted:
            await self._find_inputs()
        return tuple(f"{name}@{self._newest[name]}" for name in step.inputs if name in self._newest)

    async def _find_inputs(self) -> None:
        """Of a workflow that began when they were not noted yet: the newest of their names, as it was then."""
        for each in self._spec.inputs:
            if each.name not in self._newest and (versions := await self._artifacts.list(name=each.name)):
                self._newest[each.name] = versions[0].version
        self._are_inputs_noted = True

    async def handed(self, sources: Sequence[str]) -> list[Handed]:
        """Inputs as an agent is told. Raises ToolError."""
        out: list[Handed] = []
        for source in sources:
            name, version = _parted(source)
            out.append(await self._handed(*await self._artifacts.read(name, version=version)))
        return out

    async def _handed(self, info: ArtifactInfo, data: bytes) -> Handed:
        text, limit = data.decode("utf-8", "replace"), self._spec.summarize_above_bytes
        stand = None
        if len(data) > limit:
            stand = await self._summarize(info, text) or Stand(text=text[:limit], is_partial=True)
        return Handed(
            name=info.name,
            kind=info.kind,
            version=info.version,
            size_bytes=info.size_bytes,
            text=text if stand is None else stand.text,
            is_summary=stand is not None,
            is_partial=stand is not None and stand.is_partial,
            artifact=info.artifact,
        )

    # ------------------------------------------------------------ outputs of steps

    async def collect(
        self,
        step: Step,
        *,
        answer: str,
        diff: Callable[[Output], Awaitable[str]],
        is_own: Callable[[ArtifactInfo], bool],
        key: str,
        sources: Sequence[str],
        producer: str,
        path: str,
    ) -> list[str]:
        """Checks what the step has left, keeps what is to be kept of it; gives that as `NAME@VERSION`.

        `is_own` tells the step's artifacts from those of others; `producer` is its session. Raises ToolError for what
        is missing or wrong.
        """
        out = []
        for output in step.outputs:
            info = None
            if output.capture in ("artifact", "auto"):
                kept = await self._artifacts.list(name=output.name)
                info = next((each for each in kept if is_own(each)), None)
            if info is not None:
                await self._check(output, info)
            else:
                data = await self._captured(step, output, answer, diff)
                if data is not None:
                    info = await self._artifacts.write(
                        data,
                        name=output.name,
                        kind=output.kind,
                        sources=sources,
                        key=f"{key}:{output.name}",
                        producer=producer,
                        step=path,
                    )
            if info is not None:
                out.append(f"{info.name}@{info.version}")
            elif output.required:
                raise ToolError(f"it did not leave {output.name}", code="output_missing")
        return out

    async def _check(self, output: Output, info: ArtifactInfo) -> None:
        if info.kind != output.kind:
            text = f"{output.name} is a {info.kind}, and has to be a {output.kind}"
            raise ToolError(text, code="output_kind")
        if output.schema:
            _, data = await self._artifacts.read(info.artifact)
            _check_schema(output.name, data, output.schema)

    async def _captured(
        self, step: Step, output: Output, answer: str, diff: Callable[[Output], Awaitable[str]]
    ) -> bytes | None:
        """What is to be kept of the step's work as this output, if anything."""
        if output.capture == "diff":
            try:
                text = await diff(output)
            except ToolError:
                if output.required:
                    raise
                return None
            return text.encode()
        if answer_output(step) is not output or not answer.strip():
            return None
        if not output.schema:
            return answer.encode()
        read = read_answer(answer, output.schema)
        if read.complaint:
            raise ToolError(f"{output.name}: {read.complaint}"[:2000], code="output_schema")
        return read.json.encode()

    async def whole(self, artifact: str) -> str:
        """The text of an answer that was too long for a last word. Raises ToolError."""
        return (await self._artifacts.read(artifact))[1].decode("utf-8", "replace")

    # ------------------------------------------------------------ what conditions know

    async def facts(self, artifacts: Sequence[str]) -> tuple[ArtifactFacts, ...]:
        """What conditions want to know of these, `NAME@VERSION`. Raises ToolError."""
        out = []
        for name, version in map(_parted, artifacts):
            fields = self._asked.get(name)
            if fields is None:
                continue
            info, data = await self._artifacts.read(name, version=version)
            document = _document(data) if fields else None
            out.append(
                ArtifactFacts(
                    name=name,
                    version=version,
                    artifact=info.artifact,
                    fields=read_fields(document, fields) if document is not None else {},
                )
            )
        return tuple(out)


def _parted(artifact: str) -> tuple[str, int]:
    name, _, version = artifact.rpartition("@")
    return name, int(version)


def _read_input(declared: WorkflowInput, given: Path, files: BeneathFiles) -> bytes | None:
    """On a thread. Raises OttoError if it has to be there and is not."""
    try:
        return (given / declared.name).read_bytes()
    except FileNotFoundError:
        pass
    if not declared.file:
        return None
    try:
        return files.read(declared.file, max_bytes=MAX_ARTIFACT_BYTES)
    except OttoError as error:
        if declared.required:
            raise ToolError(f"the input {declared.name}: {error.message}", code=error.code) from error
        return None


def _document(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except UNDECODABLE:
        return None


def _check_schema(name: str, data: bytes, schema: dict[str, Any]) -> None:
    """Raises ToolError unless the content is JSON that satisfies the schema."""
    if complaint := schema_complaint(data, schema):
        raise ToolError(f"{name} {complaint}", code="output_schema")
