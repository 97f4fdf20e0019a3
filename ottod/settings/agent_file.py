"""One agent file → one AgentSpec.

Two forms: a YAML mapping with the fields of AgentSpec, or Markdown whose front matter is that mapping and whose
body is the system prompt. Short forms: `restart: transient`, `permissions: strict`, `tools: fs_read, grep`; sizes
and durations as in `512 MiB` and `5m`. The name defaults to the file's stem and must equal it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec
from ottod.settings.decode import decode_all
from ottod.settings.foreign import TOOLS, own_word
from ottod.settings.hosts import parse_local, parse_pattern
from ottod.settings.json_schema import KEYWORDS, mistakes
from ottod.settings.models import resolve_name
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.settings.nearest import nearest, suggestion
from ottod.settings.permission_rules import check_rules, placed_rules
from ottod.settings.rules import unbounded_restarts
from ottod.settings.sections import DaemonSettings, IsolationSettings
from ottod.settings.spec_source import spec_source
from ottod.settings.text_file import decode_text, read_bytes
from ottod.settings.tool_names import MAX_SOURCE_NAME_CHARS, PROJECT, SEPARATOR, USER, source_of
from ottod.settings.units import plural
from ottod.settings.yaml_source import DataPath, Source, parse

LOADER_FIELDS = ("digest", "source", "permissions.rules[].source")
"""Fields that the loader fills in; a file must not."""

AGENT_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_AUTHOR = re.compile(r"[^<>\n\x00]*[^<>\s][^<>\n\x00]* <[^<>\s\x00]+>\Z")
_VARIABLE = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*\*?|\*)\Z")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_FENCE = re.compile(r"(---|\.\.\.)[ \t]*\r?\Z")

Complain = Callable[[str, DataPath, str], None]


def read_agent(
    file: Path | str,
    *,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
    settings: DaemonSettings | None = None,
) -> AgentSpec:
    """The agent in a file. Raises: ConfigError, the first in the file when there are several."""
    spec, errors = check_agent(file, known_tools=known_tools, settings=settings)
    if spec is None:
        first, more = errors[0], len(errors) - 1
        if more:
            rest = f"{plural(more, 'more mistake')}: ottoctl agent validate {file}"
            first.mend = f"{first.mend}; {rest}" if first.mend else rest
        raise first
    return spec


def check_agent(
    file: Path | str,
    *,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
    settings: DaemonSettings | None = None,
) -> tuple[AgentSpec | None, list[ConfigError]]:
    """The agent in a file and no errors, or None and every mistake in file order.

    With `settings`, model names are checked and layers that the file does not mention get the daemon's default.
    """
    try:
        data = read_bytes(file)
    except ConfigError as error:
        return None, [error]
    return parse_agent(data, file=str(file), known_tools=known_tools, settings=settings)


def parse_agent(
    data: bytes,
    *,
    file: str,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
    settings: DaemonSettings | None = None,
) -> tuple[AgentSpec | None, list[ConfigError]]:
    """As `check_agent`, from bytes."""
    stem = Path(file).stem
    try:
        if not AGENT_NAME.match(stem):
            raise ConfigError(
                f"{stem!r} is not an agent's name",
                file=file,
                mend="name the file with lower-case letters, digits, - and _, beginning with a letter",
            )
        source = _source(data, file)
    except ConfigError as error:
        return None, [error]
    source = source._replace(data=_long_form(source.data, stem, settings.isolation if settings else None))
    spec, errors = decode_all(AgentSpec, source, hidden=LOADER_FIELDS)
    _check_tools(source, known_tools, errors)
    if spec is not None:
        _check_meaning(spec, source, stem, settings, errors)
    if spec is None or errors:
        return None, sorted(errors, key=lambda e: (e.line, e.column))
    permissions = msgspec.structs.replace(
        spec.permissions, rules=placed_rules(spec.permissions.rules, source, ("permissions", "rules"))
    )
    return msgspec.structs.replace(spec, digest=digest(spec), source=file, permissions=permissions), []


def check_spec(
    spec: AgentSpec,
    *,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
    settings: DaemonSettings | None = None,
) -> AgentSpec:
    """A spec that was made in Python, checked as a file would be, with its digest.

    Raises: ConfigError, whose message names the field's path.
    """
    checked, errors = _checked(spec, known_tools, settings)
    if checked is None:
        raise errors[0]
    return msgspec.structs.replace(checked, digest=digest(checked))


def spec_errors(
    spec: AgentSpec,
    *,
    known_tools: Collection[str] = BUILTIN_TOOL_NAMES,
    settings: DaemonSettings | None = None,
) -> list[ConfigError]:
    """Every mistake in a spec that was made in Python."""
    return _checked(spec, known_tools, settings)[1]


def _checked(
    spec: AgentSpec, known_tools: Collection[str], settings: DaemonSettings | None
) -> tuple[AgentSpec | None, list[ConfigError]]:
    """A spec from Python, read anew from its own data."""
    try:
        source = spec_source(spec)
    except ConfigError as error:
        return None, [error]
    checked, errors = decode_all(AgentSpec, source)
    _check_tools(source, known_tools, errors)
    if checked is not None:
        _check_meaning(checked, source, checked.name, settings, errors)
    return (None, errors) if errors else (checked, [])


def digest(spec: AgentSpec) -> str:
    """SHA-256, in hex, of what the spec says; where it came from does not count."""
    rules = tuple(msgspec.structs.replace(rule, source="") for rule in spec.permissions.rules)
    permissions = msgspec.structs.replace(spec.permissions, rules=rules)
    bare = msgspec.structs.replace(spec, digest="", source="", permissions=permissions)
    return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


def agent_source(file: str) -> Source:
    """The data of an agent's file with their places, short forms as they are. Raises: ConfigError."""
    return _source(read_bytes(file), file)


def _source(data: bytes, file: str) -> Source:
    return _front_matter(data, file) if file.endswith(".md") else parse(data, file=file)


def _front_matter(data: bytes, file: str) -> Source:
    """The front matter of a Markdown file, its body put in as `system_prompt`."""
    text = decode_text(data, file=file)
    lines = text.split("\n")
    if not _FENCE.match(lines[0]) or lines[0].startswith("."):
        raise ConfigError(
            "no front matter", file=file, line=1, column=1, mend="begin with a line `---`, keys, and a line `---`"
        )
    end = next((i for i, line in enumerate(lines[1:], 1) if _FENCE.match(line)), 0)
    if not end:
        raise ConfigError(
            "the front matter has no end", file=file, line=1, column=1, mend="close it with a line `---`"
        )
    head = "\n".join(lines[1:end])
    source = parse(head.encode(), file=file, first_line=2)
    body = "\n".join(lines[end + 1 :]).strip()
    if not body:
        return source
    if "system_prompt" in source.data:
        raise source.error(
            "system_prompt is given twice: here and as the body",
            ("system_prompt",),
            key=True,
            mend="keep the body, remove the key",
        )
    return source._replace(data={**source.data, "system_prompt": body})


def _long_form(data: dict[str, Any], stem: str, defaults: IsolationSettings | None) -> dict[str, Any]:
    """The data with short forms written out and defaults put in."""
    full = {"name": stem, **data}
    for key, field in (("restart", "policy"), ("permissions", "preset")):
        if isinstance(full.get(key), str):
            full[key] = {field: full[key]}
    for key in ("tools", "tags", "fallback", "handoffs"):
        value = full.get(key)
        if isinstance(value, str):
            full[key] = [word for word in re.split(r"[,\s]+", value) if word]
    isolation = full.get("isolation", {})
    if defaults is not None and isinstance(isolation, dict):
        full["isolation"] = {**msgspec.structs.asdict(defaults), **isolation}
    return full


def _check_meaning(
    spec: AgentSpec,
    source: Source,
    stem: str,
    settings: DaemonSettings | None,
    errors: list[ConfigError],
) -> None:
    """What types cannot say: names that must exist, fields that exclude each other."""

    def wrong(message: str, path: DataPath, mend: str) -> None:
        errors.append(source.error(message, path, mend=mend))

    if spec.name != stem:
        wrong(f"name {spec.name!r} differs from the file's name {stem!r}", ("name",), "make them equal")
    _check_servers(spec, wrong)
    backoff = spec.restart.backoff
    if backoff.base_s > backoff.max_s:
        wrong(
            f"restart.backoff begins with {backoff.base_s:g} s and may not exceed max_s, {backoff.max_s:g} s",
            ("restart", "backoff", "base_s"),
            f"write `max_s: {backoff.base_s:g}` or more, or a smaller base_s",
        )
    unbounded = unbounded_restarts(spec.group.max_restarts, spec.group.period_s)
    if unbounded is not None:
        wrong(f"group: {unbounded[0]}", ("group", "max_restarts"), unbounded[1])
    _check_hosts(spec, wrong)
    if spec.git.author and not _AUTHOR.match(spec.git.author):
        wrong(f"git.author is no author: {spec.git.author!r}", ("git", "author"), "write `Name <name@example.org>`")
    _check_output_schema(spec, source, errors)
    if spec.context.summary_model not in ("", spec.model, *spec.fallback_models):
        wrong(
            f"context.summary_model {spec.context.summary_model!r} is none of the agent's models",
            ("context", "summary_model"),
            "name its model or one of its fallback_models; put it there if it is to write summaries",
        )
    _check_fallback(spec, wrong)
    for field, paths in (("read_paths", spec.isolation.read_paths), ("write_paths", spec.isolation.write_paths)):
        for i, directory in enumerate(paths):
            if not directory:
                wrong(
                    f"isolation.{field}[{i}] is empty, which is no directory",
                    ("isolation", field, i),
                    "write `.` for the working directory, or leave it out",
                )
    for i, name in enumerate(spec.env):
        if not _VARIABLE.match(name):
            wrong(f"env[{i}] is not a variable's name: {name!r}", ("env", i), "write names only, without values")
    if settings is not None:
        for path, model in _models(spec):
            try:
                resolve_name(model, settings)
            except ConfigError as error:
                wrong(error.message, path, error.mend)


def _models(spec: AgentSpec) -> list[tuple[DataPath, str]]:
    fallbacks: list[tuple[DataPath, str]] = [
        (("fallback_models", i), model) for i, model in enumerate(spec.fallback_models)
    ]
    return [(("model",), spec.model), *fallbacks]


def _check_tools(source: Source, known_tools: Collection[str], errors: list[ConfigError]) -> None:
    """Tool names, read from the data so that another mistake in the file does not hide a wrong one."""
    tools = source.data.get("tools")
    servers = _servers(source)
    seen: set[str] = set()
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        if not isinstance(tool, str):
            continue
        if tool in seen:
            errors.append(source.error(f"tool {tool!r} is listed twice", ("tools", i), mend="remove one of the two"))
        elif tool not in known_tools and source_of(tool) not in servers:
            meant = _tool_meant(tool, known_tools)
            hint = f" — did you mean {meant!r}?" if meant else ""
            mend = f"write {meant!r}" if meant else _tool_mend(tool, known_tools)
            errors.append(source.error(f"unknown tool {tool!r}{hint}", ("tools", i), mend=mend or "remove it"))
        seen.add(tool)
    check_rules(source, known_tools, errors, sources=(*servers, PROJECT, USER))
    _check_capped_tools(source, known_tools, errors)


def _check_capped_tools(source: Source, known_tools: Collection[str], errors: list[ConfigError]) -> None:
    """A cap for a tool that nobody has would never hold. Tools of MCP servers are not known yet."""
    limits = source.data.get("limits")
    caps = limits.get("max_concurrent") if isinstance(limits, dict) else None
    for name in caps if isinstance(caps, dict) and not source.data.get("mcp_servers") else ():
        if isinstance(name, str) and name not in known_tools:
            mend = suggestion(name, known_tools)
            place = ("limits", "max_concurrent", name)
            errors.append(source.error(f"a cap for the unknown tool {name!r}", place, mend=mend or "remove it"))


def _servers(source: Source) -> set[str]:
    """The names of the MCP servers, read from the data as the tools are."""
    servers = source.data.get("mcp_servers")
    named = (
        [server.get("name") for server in servers if isinstance(server, dict)] if isinstance(servers, list) else []
    )
    return {name for name in named if isinstance(name, str)}


def _tool_meant(tool: str, known_tools: Collection[str]) -> str:
    """The tool that was probably meant: of the same source, or one that other systems call so."""
    if source_of(tool) not in ("", PROJECT, USER):
        return ""
    alike = [name for name in known_tools if source_of(name) == source_of(tool)]
    return own_word(tool, alike, TOOLS) or nearest(tool, sorted(alike))


def _tool_mend(tool: str, known_tools: Collection[str]) -> str:
    """What to do about a tool that is like no other."""
    if source_of(tool) in (PROJECT, USER):
        own = sorted(name for name in known_tools if source_of(name) == source_of(tool))
        where = ".otto/tools/" if source_of(tool) == PROJECT else "the tools/ directory of Otto's configuration"
        nothing = f"there is no @tool in {where}"
        if source_of(tool) == PROJECT:
            nothing += ", or the daemon's project_may.tools is false"
        return f"use one of: {', '.join(own)}" if own else nothing
    if source_of(tool):
        return f"add a server named {source_of(tool)!r} to mcp_servers, or remove it"
    return suggestion(tool, [name for name in known_tools if not source_of(name)])


def _check_hosts(spec: AgentSpec, wrong: Complain) -> None:
    kinds: tuple[tuple[str, tuple[str, ...], Callable[[str], object]], ...] = (
        ("hosts", spec.http.hosts, parse_pattern),
        ("local", spec.http.local, parse_local),
    )
    for field, texts, parse_host in kinds:
        for i, text in enumerate(texts):
            try:
                parse_host(text)
            except ValueError as error:
                message, _, mend = str(error).partition(": ")
                wrong(f"http.{field}[{i}]: {message}", ("http", field, i), mend)


def _check_output_schema(spec: AgentSpec, source: Source, errors: list[ConfigError]) -> None:
    """A keyword that is not carried out is refused: an answer would pass for checked that is not."""
    for mistake in mistakes(spec.output_schema):
        path: DataPath = ("output_schema", *mistake.path)
        mend = f"keywords that are checked: {', '.join(KEYWORDS)}"
        errors.append(source.error(f"output_schema: {mistake.message}", path, mend=mend))


def _check_fallback(spec: AgentSpec, wrong: Complain) -> None:
    """A resort that could never help would be noticed only when it is needed."""
    for i, resort in enumerate(spec.fallback):
        if resort in spec.fallback[:i]:
            wrong(f"fallback lists {resort!r} twice", ("fallback", i), "remove one of the two")
    if "rule" in spec.fallback and not spec.fallback_answer.strip():
        place = ("fallback", spec.fallback.index("rule"))
        wrong("fallback has `rule`, and there is no fallback_answer", place, "add `fallback_answer:` with a text")
    if "rule" in spec.fallback[:-1]:
        place = ("fallback", spec.fallback.index("rule") + 1)
        wrong("nothing behind `rule` in fallback is reached", place, "move `rule` to the end, or remove what follows")
    if spec.fallback_answer and "rule" not in spec.fallback:
        mend = f"write `fallback: [{', '.join((*spec.fallback, 'rule'))}]`"
        wrong("fallback_answer is never given: fallback has no `rule`", ("fallback_answer",), mend)
    if spec.fallback_models and "model" not in spec.fallback:
        mend = f"write `fallback: [{', '.join(('model', *spec.fallback))}]`, or remove them"
        wrong("fallback_models are never asked: fallback has no `model`", ("fallback_models",), mend)


def _check_servers(spec: AgentSpec, wrong: Complain) -> None:
    seen: set[str] = set()
    for i, server in enumerate(spec.mcp_servers):
        here: DataPath = ("mcp_servers", i)
        if bool(server.command) == bool(server.url):
            message = f"MCP server {server.name!r} needs either a command or a URL"
            wrong(message, here, "write `command: [program, argument]` or `url:`, not both")
        elif server.url and not server.url.startswith(("http://", "https://")):
            wrong(f"not an HTTP URL: {server.url!r}", (*here, "url"), "begin with https://")
        if server.name in seen:
            wrong(f"MCP server {server.name!r} is listed twice", here, "rename one of the two")
        if server.name in (PROJECT, USER) or SEPARATOR in server.name or len(server.name) > MAX_SOURCE_NAME_CHARS:
            message = f"an MCP server cannot be called {server.name!r}: its tools get names that begin with it"
            mend = (
                f"at most {MAX_SOURCE_NAME_CHARS} characters, no {SEPARATOR!r}, and neither {PROJECT!r} nor {USER!r}"
            )
            wrong(message, (*here, "name"), mend)
        for key, needed in (("headers", "url"), ("env", "command"), ("network", "command")):
            if getattr(server, key) and not getattr(server, needed):
                wrong(f"{key} has no effect without {needed}", (*here, key), f"remove {key}")
        for name, value in server.headers.items():
            if not _HEADER.match(name) or not value.isascii() or not value.isprintable():
                wrong(f"not an HTTP header: {name!r}", (*here, "headers"), "write `Name: value`, in plain characters")
        for k, name in enumerate(server.env):
            if not _VARIABLE.match(name):
                wrong(f"not a variable's name: {name!r}", (*here, "env", k), "write names only, without values")
        seen.add(server.name)
