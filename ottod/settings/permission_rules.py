"""Permission rules as files hold them: what is wrong with one, and where each stands."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from ottod.errors import ConfigError
from ottod.protocol.specs import PermissionRule
from ottod.settings.decode import dotted
from ottod.settings.nearest import nearest, suggestion
from ottod.settings.tool_names import source_of
from ottod.settings.yaml_source import DataPath, Source

MAX_PATTERN_CHARS = 4096
PATTERNS = ("tool", "agent", "path", "command", "host", "target")
"""The conditions of a rule that are patterns."""


def check_rules(
    source: Source, known_tools: Collection[str], errors: list[ConfigError], *, sources: Collection[str] = ()
) -> None:
    """Rules under `permissions.rules` that would never hold, in silence. Read from the data, so that another mistake
    in the file does not hide them. Of tools that one of `sources` gives only that source knows the names.
    """
    permissions = source.data.get("permissions")
    rules = permissions.get("rules") if isinstance(permissions, dict) else None
    for i, rule in enumerate(rules if isinstance(rules, list) else []):
        if not isinstance(rule, dict):
            continue
        place: DataPath = ("permissions", "rules", i)
        tool, path = rule.get("tool"), rule.get("path")
        # Patterns may match tools that are yet to come.
        is_known = isinstance(tool, str) and (tool in known_tools or source_of(tool) in sources)
        if isinstance(tool, str) and tool and not is_known and not set(tool) & set("*?["):
            mend = suggestion(tool, known_tools)
            message = f"a rule for the unknown tool {tool!r}"
            errors.append(source.error(message, (*place, "tool"), mend=mend or "remove it"))
        if isinstance(path, str) and ".." in path.split("/"):
            mend = "write it relative to the working directory, or absolute, without `..`"
            errors.append(source.error(f"the pattern {path!r} matches nothing", (*place, "path"), mend=mend))
        for name in (*PATTERNS, "run_mode", "permission"):
            if rule.get(name) == "":
                # Taken for an absent one, it would match everything: nobody writes that who means it.
                message = f"an empty {name} is no condition"
                errors.append(source.error(message, (*place, name), mend="leave the key out to match everything"))
        for name in PATTERNS:
            if len(str(rule.get(name, ""))) > MAX_PATTERN_CHARS:
                message = f"a pattern of more than {MAX_PATTERN_CHARS} characters"
                errors.append(source.error(message, (*place, name), mend="make it shorter"))


def rules_about_nobody(source: Source, agents: Collection[str]) -> list[ConfigError]:
    """Rules that name an agent which there is not, in `agent` or `target`: warnings, since it may be yet to come.

    A target can also be the name of a session, so only one that is nearly an agent's is taken for a mistake.
    """
    found = []
    permissions = source.data.get("permissions")
    rules = permissions.get("rules") if isinstance(permissions, dict) else None
    for i, rule in enumerate(rules if isinstance(rules, list) else []):
        for key in ("agent", "target"):
            name = rule.get(key) if isinstance(rule, dict) else None
            if not isinstance(name, str) or not name or set(name) & set("*?[") or name in agents:
                continue
            close = nearest(name, sorted(agents))
            if key == "target" and (not close or name.startswith(close)):
                continue
            place: DataPath = ("permissions", "rules", i, key)
            hint = f" — did you mean {close!r}?" if close else ""
            mend = (
                f"write {close!r}" if close else f"make such an agent, or write one of: {', '.join(sorted(agents))}"
            )
            found.append(source.error(f"{dotted(place)}: unknown agent {name!r}{hint}", place, mend=mend))
    return found


def placed_rules(rules: Iterable[PermissionRule], source: Source, path: DataPath) -> tuple[PermissionRule, ...]:
    """The rules, each with the file and line where it stands."""
    return tuple(
        msgspec.structs.replace(rule, source=f"{source.file}:{source.locate((*path, i)).line}")
        for i, rule in enumerate(rules)
    )
