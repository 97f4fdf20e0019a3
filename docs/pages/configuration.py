"""The configuration reference: the daemon's file, agent files, the environment."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from ottod.protocol import specs
from ottod.settings import decode, sections
from ottod.settings.agent_file import LOADER_FIELDS
from ottod.settings.models import BUILTIN_ALIASES, BUILTIN_PROVIDERS
from ottod.settings.units import format_duration, format_size
from pages.agent_fields import AGENT_FIELDS
from pages.common import NOTICE, cell, field_docs

VARIABLES = (
    (
        "OTTO_RUNTIME_DIR",
        "Sockets and lock.",
        "`$XDG_RUNTIME_DIR/otto`, else `/run/user/UID/otto`, else `/tmp/otto-UID`",
    ),
    ("OTTO_STATE_DIR", "Ring, database, journals.", "`$XDG_STATE_HOME/otto`, else `~/.local/state/otto`"),
    ("OTTO_CONFIG_HOME", "Your agents and the daemon's file.", "`$XDG_CONFIG_HOME/otto`, else `~/.config/otto`"),
    ("OTTO_CONFIG", "The daemon's file; it must exist.", "`<config home>/otto.yml`, which need not"),
    ("OTTO_BWRAP", "The daemon's bubblewrap, by its absolute path.", "`bwrap` where the system keeps programs"),
    ("OTTO_ENDPOINT", "The socket that clients speak to.", "`ipc://<runtime>/control.sock`"),
)


def configuration_page() -> str:
    """Both kinds of file and the environment."""
    aliases = "\n".join(f"| `{name}` | `{target}` |" for name, target in BUILTIN_ALIASES.items())
    adapters = "\n".join(
        f"| `{name}` | `{p.adapter}` | {f'`{p.api_key_env}`' if p.api_key_env else 'none'} |"
        for name, p in BUILTIN_PROVIDERS.items()
    )
    variables = "\n".join(f"| `{name}` | {what} | {default} |" for name, what, default in VARIABLES)
    daemon = "\n".join(_daemon_sections())
    return f"""{NOTICE}
# Configuration

Two kinds of file, both YAML: one for the daemon, one for each agent. Unknown keys, duplicate keys and wrong types
are errors that name file, line and column. Sizes are written `512 MiB`, `2G` or in bytes; durations `30s`, `5m`,
`1h30m` or in seconds; numbers may hold underscores. Only `true` and `false` are booleans.

## Environment

| variable | what | default |
|---|---|---|
{variables}

## The daemon's file

`~/.config/otto/otto.yml`. Every key is optional; [config/otto.yml](../../config/otto.yml) shows them all with their
defaults. A change takes effect at the daemon's next start, or with `ottoctl daemon reload` where that is possible.
`ottoctl config show` says what holds, and which line says so.

{daemon}

### Built-in aliases

| alias | model |
|---|---|
{aliases}

### Built-in providers

| provider | adapter | key |
|---|---|---|
{adapters}

A provider's key is looked for in `api_key_file`, then in systemd's credentials (named like the variable or the
provider), then in the variable `api_key_env` of the daemon's environment:
[give Otto keys](../how-to/secrets.md).

## Agent files

`NAME.yml`, or `NAME.md` with these keys as front matter and the system prompt as body, in `.otto/agents/` of a
project, in `~/.config/otto/agents/`, or built in; the first found wins. How to write one:
[write an agent](../how-to/write-an-agent.md).

| key | value | default | meaning |
|---|---|---|---|
{_agent_rows()}
"""


def _daemon_sections() -> Iterator[str]:
    docs = field_docs(sections)
    plain = []
    for field in msgspec.structs.fields(sections.DaemonSettings):
        section = _section_of(field.type)
        if section is None:
            plain.append(
                f"### `{field.name}`\n\n{docs['DaemonSettings', field.name]}\n\nDefault: {default_text(field)}.\n"
            )
            continue
        text = inspect.getdoc(section) or ""
        if get_args(field.type):
            text += f"\n\n{docs['DaemonSettings', field.name]} Each entry:"
        yield f"### `{field.name}`\n\n{text}\n\n" + _table(section, docs)
        for inner in msgspec.structs.fields(section):
            deeper = _section_of(inner.type)
            if deeper is not None and deeper.__module__ == sections.__name__:
                path = field.name + (".*." if get_args(field.type) else ".") + inner.name
                path += ".*" if get_args(inner.type) else ""
                yield f"#### `{path}`\n\n{inspect.getdoc(deeper)}\n\n" + _table(deeper, docs)
    yield from plain


def _table(section: type[msgspec.Struct], docs: dict[tuple[str, str], str]) -> str:
    rows = "".join(
        f"| `{f.name}` | {kind_text(f)} | {default_text(f)} | {cell(docs[section.__name__, f.name])} |\n"
        for f in msgspec.structs.fields(section)
        # A section within a section has a table of its own.
        if _section_of(f.type) is None or get_args(f.type)
    )
    if not rows:
        return ""
    return f"| key | value | default | meaning |\n|---|---|---|---|\n{rows}"


def _section_of(annotation: Any) -> type[msgspec.Struct] | None:
    """The struct of a section, also where the file has many under names."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind
    return None


def _agent_rows() -> str:
    unused = set(AGENT_FIELDS)
    rows = []
    for path, field in _leaves(specs.AgentSpec, ""):
        if path in LOADER_FIELDS:
            continue
        unused.discard(path)
        rows.append(f"| `{path}` | {kind_text(field)} | {default_text(field)} | {cell(AGENT_FIELDS[path])} |")
    if unused:
        raise SystemExit(f"docs/generate.py: AGENT_FIELDS explains what does not exist: {', '.join(sorted(unused))}")
    return "\n".join(rows)


def _leaves(struct: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(struct):
        inner = _section_of(field.type)
        if inner is None:
            yield prefix + field.name, field
        else:
            yield from _leaves(inner, f"{prefix}{field.name}{'[]' if get_args(field.type) else ''}.")


def kind_text(field: Any) -> str:
    text = decode.describe(field.type, name=field.name)
    return cell(text.replace("such as 512 MiB ", "").replace("such as 30s or 5m ", ""))


def default_text(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if value is None or value in ("", (), [], {}):
        return "none"
    if isinstance(value, msgspec.Struct):
        return "see below"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if decode.is_size(field.name):
        return f"`{format_size(value)}`"
    if decode.is_duration(field.name):
        return f"`{format_duration(value)}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"
