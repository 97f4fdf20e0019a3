"""One workflow file → one WorkflowSpec.

A YAML mapping with the fields of WorkflowSpec; short forms are in `workflow_short`. The name defaults to the file's
stem and must equal it. Outputs of an agreed kind (`protocol.artifact_kinds`) get its schema, and an artifact that
bears an agreed kind's name is of that kind, unless the file says otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from ottod.errors import ConfigError
from ottod.protocol.artifact_kinds import standard_schema, usual_kind
from ottod.protocol.workflows import Step, WorkflowSpec
from ottod.settings.decode import decode_all, dotted
from ottod.settings.models import resolve_name
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.settings.permission_rules import check_rules, placed_rules
from ottod.settings.sections import DaemonSettings
from ottod.settings.spec_source import spec_source
from ottod.settings.text_file import read_bytes
from ottod.settings.workflow_checks import findings
from ottod.settings.workflow_finding import Finding
from ottod.settings.workflow_people import People, people_findings
from ottod.settings.workflow_short import long_form, plain
from ottod.settings.workflow_sinks import program_findings, sink_findings
from ottod.settings.workflow_tree import places
from ottod.settings.yaml_source import DataPath, Source, parse

LOADER_FIELDS = ("digest", "source", "steps[].source", "permissions.rules[].source")
"""Fields that the loader fills in; a file must not. Those of steps at any depth."""


def check_workflow(
    file: Path | str, *, people: People | None = None, settings: DaemonSettings | None = None
) -> tuple[WorkflowSpec | None, list[ConfigError]]:
    """The workflow in a file and no errors, or None and every mistake in file order.

    With `people`, agents and routes are checked; with `settings`, models are.
    """
    try:
        data = read_bytes(file)
    except ConfigError as error:
        return None, [error]
    return parse_workflow(data, file=str(file), people=people, settings=settings)


def parse_workflow(
    data: bytes, *, file: str, people: People | None = None, settings: DaemonSettings | None = None
) -> tuple[WorkflowSpec | None, list[ConfigError]]:
    """As `check_workflow`, from bytes."""
    stem = Path(file).stem
    try:
        source = parse(data, file=file)
        assert source.root is not None
        root = long_form(source.root, stem)
        source = Source(file, plain(root), root)
    except ConfigError as error:
        return None, [error]
    spec, errors = _checked(source, stem, people, settings)
    if spec is None or errors:
        return None, sorted(errors, key=lambda e: (e.line, e.column))
    permissions = msgspec.structs.replace(
        spec.permissions, rules=placed_rules(spec.permissions.rules, source, ("permissions", "rules"))
    )
    steps = tuple(_placed(step, source, ("steps", i)) for i, step in enumerate(spec.steps))
    full = msgspec.structs.replace(spec, permissions=permissions, steps=steps, source=file)
    return msgspec.structs.replace(full, digest=workflow_digest(full)), []


def check_workflow_spec(
    spec: WorkflowSpec, *, people: People | None = None, settings: DaemonSettings | None = None
) -> WorkflowSpec:
    """A workflow that was made in Python, checked as a file would be, with its digest.

    Raises: ConfigError, whose message names the field's path.
    """
    checked, errors = _from_python(spec, people, settings)
    if checked is None:
        raise errors[0]
    return checked


def workflow_errors(
    spec: WorkflowSpec, *, people: People | None = None, settings: DaemonSettings | None = None
) -> list[ConfigError]:
    """Every mistake in a workflow that was made in Python."""
    return _from_python(spec, people, settings)[1]


def workflow_digest(spec: WorkflowSpec) -> str:
    """SHA-256, in hex, of what the workflow says; where it came from does not count."""
    rules = tuple(msgspec.structs.replace(rule, source="") for rule in spec.permissions.rules)
    permissions = msgspec.structs.replace(spec.permissions, rules=rules)
    steps = tuple(_bare(step) for step in spec.steps)
    bare = msgspec.structs.replace(spec, digest="", source="", permissions=permissions, steps=steps)
    return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


def _from_python(
    spec: WorkflowSpec, people: People | None, settings: DaemonSettings | None
) -> tuple[WorkflowSpec | None, list[ConfigError]]:
    try:
        source = spec_source(spec)
    except ConfigError as error:
        return None, [error]
    name = source.data.get("name")
    checked, errors = _checked(source, name if isinstance(name, str) else "", people, settings)
    if checked is None or errors:
        return None, errors
    return msgspec.structs.replace(checked, digest=workflow_digest(checked)), []


def _checked(
    source: Source, name: str, people: People | None, settings: DaemonSettings | None
) -> tuple[WorkflowSpec | None, list[ConfigError]]:
    """The workflow that the data means, conventions filled in; and every mistake."""
    _fill(source.data, settings)
    # What a spec from Python says of itself is not its own to say; it is replaced.
    hidden = _loader_fields(source.data) if source.file else ()
    spec, errors = decode_all(WorkflowSpec, source, hidden=hidden)
    check_rules(source, BUILTIN_TOOL_NAMES, errors)
    found: list[Finding] = []
    if spec is not None:
        found += findings(spec)
        found += _names(spec, name)
        found += sink_findings(spec, settings)
        if settings is not None:
            found += _models(spec, settings)
    if people is not None:
        found += people_findings(source.data, people)
        if spec is not None:
            found += program_findings(spec, people.config_home)
    errors += [_error(source, finding) for finding in found]
    return spec, errors


def _error(source: Source, finding: Finding) -> ConfigError:
    where = f"{dotted(finding.path)}: " if not source.file and finding.path else ""
    return source.error(where + finding.message, finding.path, key=finding.key, mend=finding.mend)


def _loader_fields(data: dict[str, Any]) -> tuple[str, ...]:
    """The fields that a file must not set, with those of steps as deep as they go."""
    depth, level = 0, [data]
    deeper: list[str] = []
    while level and depth < 64:
        depth += 1
        deeper.append("steps[]." * depth + "source")
        level = [inner for node in level for inner in _nodes_of(node)]
    return (*LOADER_FIELDS, *deeper)


def _nodes_of(node: dict[str, Any]) -> list[dict[str, Any]]:
    steps = node.get("steps")
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _fill(data: dict[str, Any], settings: DaemonSettings | None) -> None:
    """Puts in what goes without saying: the daemon's layers, kinds by their names, schemas by their kinds."""
    isolation = data.get("isolation", {})
    if settings is not None and isinstance(isolation, dict):
        data["isolation"] = {**msgspec.structs.asdict(settings.isolation), **isolation}
    _fill_artifacts(data.get("inputs"))
    level = _nodes_of(data)
    while level:
        for node in level:
            _fill_artifacts(node.get("outputs"))
        level = [inner for node in level for inner in _nodes_of(node)]


def _fill_artifacts(artifacts: Any) -> None:
    for artifact in artifacts if isinstance(artifacts, list) else ():
        if not isinstance(artifact, dict):
            continue
        name = artifact.get("name")
        if isinstance(name, str):
            artifact.setdefault("kind", usual_kind(name))
        kind = artifact.get("kind")
        if isinstance(kind, str) and artifact.get("schema", {}) == {} and standard_schema(kind):
            artifact["schema"] = standard_schema(kind)


def _names(spec: WorkflowSpec, stem: str) -> Iterator[Finding]:
    if spec.name != stem:
        yield Finding(("name",), f"name {spec.name!r} differs from the file's name {stem!r}", "make them equal")
    for i, given in enumerate(spec.inputs):
        path = PurePosixPath(given.file)
        if path.is_absolute() or ".." in path.parts:
            message = f"input {given.name!r} is read from {given.file!r}, outside the working directory"
            yield Finding(("inputs", i, "file"), message, "write it relative to the working directory, without `..`")


def _models(spec: WorkflowSpec, settings: DaemonSettings) -> Iterator[Finding]:
    for place in places(spec):
        if isinstance(place.node, Step) and place.node.model:
            try:
                resolve_name(place.node.model, settings)
            except ConfigError as error:
                yield Finding((*place.path, "model"), error.message, error.mend)


def _placed(step: Step, source: Source, path: DataPath) -> Step:
    steps = tuple(_placed(inner, source, (*path, "steps", i)) for i, inner in enumerate(step.steps))
    return msgspec.structs.replace(step, source=f"{source.file}:{source.locate(path).line}", steps=steps)


def _bare(step: Step) -> Step:
    return msgspec.structs.replace(step, source="", steps=tuple(_bare(inner) for inner in step.steps))
