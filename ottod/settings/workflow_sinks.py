"""What makes a workflow's sinks senseless, found before anything starts; and the user's own sinks, found by name.

Where a sink may go is decided again when it goes there; here it is told where it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ottod.errors import ConfigError
from ottod.protocol.sinks import MAX_SINKS, Sink, SinkFile
from ottod.protocol.workflows import Step, WorkflowSpec, sinks_of
from ottod.settings.hosts import DEFAULT_PORTS, parse_local, parse_pattern
from ottod.settings.nearest import nearest, suggestion
from ottod.settings.sections import DaemonSettings
from ottod.settings.text_file import decode_text, read_bytes
from ottod.settings.workflow_finding import Finding
from ottod.settings.workflow_tree import places
from ottod.settings.yaml_source import DataPath

SINKS_DIR = "sinks"
"""In the user's configuration: files `NAME.py`."""
MAX_SOURCE_BYTES = 256 * 1024
PROTECTED = frozenset({".git", ".otto"})
FIELDS: dict[str, tuple[str, ...]] = {
    "path": ("filesystem", "sqlite"),
    "files": ("filesystem",),
    "on_conflict": ("filesystem",),
    "url": ("webhook",),
    "secret": ("webhook",),
    "content_bytes": ("webhook", "program"),
    "timeout_s": ("webhook", "program"),
    "program": ("program",),
    "options": ("program",),
    "secrets": ("program",),
    "artifacts": ("filesystem", "sqlite", "webhook", "program"),
    "kinds": ("filesystem", "sqlite", "webhook", "program"),
}
"""Which kinds of sinks a field is for."""
NEEDS = {"sqlite": "path", "webhook": "url", "program": "program"}
_DEFAULT = Sink(to="filesystem")


def sink_findings(spec: WorkflowSpec, settings: DaemonSettings | None) -> Iterator[Finding]:
    """Everything that is wrong with a workflow's sinks; with `settings`, also what these do not grant."""
    if len(spec.sinks) > MAX_SINKS:
        yield Finding(("sinks",), f"more than {MAX_SINKS} sinks", "send to one place, and on from there")
    left = {output.name for place in places(spec) if isinstance(place.node, Step) for output in place.node.outputs}
    first: dict[str, int] = {}
    for i, sink in enumerate(sinks_of(spec)):
        if sink.label in first:
            mend = "add a `name:` of its own to one of the two"
            yield Finding(("sinks", min(i, len(spec.sinks) - 1)), f"two sinks are called {sink.label!r}", mend)
        first.setdefault(sink.label, i)
    for i, sink in enumerate(spec.sinks):
        path: DataPath = ("sinks", i)
        yield from _shape(sink, path)
        yield from _artifacts(sink, path, left)
        yield from _paths(sink, path)
        if settings is not None:
            yield from _grants(sink, path, settings)


def _shape(sink: Sink, path: DataPath) -> Iterator[Finding]:
    for field, kinds in FIELDS.items():
        if sink.to not in kinds and getattr(sink, field) != getattr(_DEFAULT, field):
            yield Finding((*path, field), f"{field} has no meaning for a sink to {sink.to}", "remove it", key=True)
    wanted = NEEDS.get(sink.to, "")
    if wanted and not getattr(sink, wanted):
        yield Finding(path, f"a sink to {sink.to} needs {wanted}", f"add `{wanted}:`")
    if sink.to == "filesystem" and not sink.path and not sink.files:
        yield Finding(path, "a sink to filesystem needs path or files", "add `path:` with a directory, or `files:`")


def _artifacts(sink: Sink, path: DataPath, left: set[str]) -> Iterator[Finding]:
    named: list[tuple[DataPath, str]] = [((*path, "artifacts", k), name) for k, name in enumerate(sink.artifacts)]
    named += [((*path, "files", name), name) for name in sink.files]
    for where, name in named:
        if name not in left:
            yield Finding(where, f"no step leaves {name!r}", suggestion(name, left) or "add it to a step's outputs")


def _paths(sink: Sink, path: DataPath) -> Iterator[Finding]:
    named: list[tuple[DataPath, str]] = [((*path, "path"), sink.path)] if sink.path else []
    named += [((*path, "files", name), file) for name, file in sink.files.items()]
    for where, text in named:
        parts = PurePosixPath(text).parts
        if not text or text.startswith(("/", "~")) or ".." in parts or "\0" in text:
            mend = "write it relative to the working directory, without `..`"
            yield Finding(where, f"{text!r} is outside of the working directory", mend)
        elif any(part.casefold() in PROTECTED for part in parts):
            yield Finding(where, f"{text!r} belongs to git or to Otto", "name another place")


def _grants(sink: Sink, path: DataPath, settings: DaemonSettings) -> Iterator[Finding]:
    if sink.url:
        yield from _url(sink.url, (*path, "url"), settings)
    named: list[tuple[DataPath, str]] = [((*path, "secret"), sink.secret)] if sink.secret else []
    named += [((*path, "secrets", k), name) for k, name in enumerate(sink.secrets)]
    for where, name in named:
        if name not in settings.secrets:
            close = nearest(name, settings.secrets)
            mend = f"did you mean {close!r}?" if close else f"add `secrets: {{{name}: …}}` to otto.yml"
            yield Finding(where, f"unknown secret {name!r}", mend)
        elif name not in settings.sinks.secrets:
            yield Finding(where, f"sinks may not have the secret {name!r}", "name it in sinks.secrets of otto.yml")


def _url(url: str, path: DataPath, settings: DaemonSettings) -> Iterator[Finding]:
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
    except ValueError:
        scheme, host, port = "", "", None
    if scheme not in DEFAULT_PORTS or not host or "@" in parts.netloc:
        mend = "write https://HOST/PATH, without a user's name"
        yield Finding(path, f"{url[:200]!r} is no URL of a webhook", mend)
        return
    at = port or DEFAULT_PORTS[scheme]
    sinks = settings.sinks
    is_local = any((place.host, place.port) == (host, at) for place in map(parse_local, sinks.local))
    if not is_local and not any(parse_pattern(text).matches(scheme, host, at) for text in sinks.hosts):
        mend = f"add {host}{f':{port}' if port else ''} to sinks.hosts of otto.yml, or to sinks.local"
        yield Finding(path, f"webhooks may not go to {host}", mend)


def program_findings(spec: WorkflowSpec, config_home: Path) -> Iterator[Finding]:
    """Sinks of the user's own that are not there. Blocks on files."""
    for i, sink in enumerate(spec.sinks):
        if sink.to == "program" and sink.program:
            try:
                sink_file(sink.program, config_home)
            except ConfigError as error:
                yield Finding(("sinks", i, "program"), error.message, error.mend)


def sink_files(spec: WorkflowSpec, config_home: Path) -> tuple[SinkFile, ...]:
    """The files of the user's own sinks, as they are now. Blocks on files. Raises ConfigError."""
    names = dict.fromkeys(sink.program for sink in spec.sinks if sink.to == "program")
    return tuple(sink_file(name, config_home) for name in names)


def sink_file(name: str, config_home: Path) -> SinkFile:
    """One of them. Blocks on files. Raises ConfigError."""
    directory = config_home / SINKS_DIR
    file = directory / f"{name}.py"
    if PurePosixPath(name).name != name or not file.is_file():
        try:
            known = sorted(each.stem for each in directory.iterdir() if each.suffix == ".py")
        except OSError:
            known = []
        error = ConfigError(
            f"there is no sink {name[:100]!r} of yours", mend=suggestion(name, known) or f"write it as {file}"
        )
        error.code = "unknown_sink"
        raise error
    data = read_bytes(file)
    if len(data) > MAX_SOURCE_BYTES:
        raise ConfigError(f"larger than {MAX_SOURCE_BYTES} bytes", file=str(file), mend="split it")
    return SinkFile(name=name, path=str(file), source=decode_text(data, file=str(file)))
