"""Attacks by files of a project: an agent file that asks for more than the user gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ottod.errors import ConfigError
from ottod.protocol.specs import AgentSpec, Isolation, McpServer, PermissionRule, Permissions
from ottod.settings.policy import narrow
from ottod.settings.sections import DaemonSettings
from tests.redteam.arena import BREACH, Act, Arena

BLOCKED = "project files only narrow"


def narrowed(arena: Arena, **fields: Any) -> AgentSpec:
    """The spec of a project's agent as a session gets it. Raises ConfigError if it is refused."""
    file = arena.project / ".otto/agents/evil.yml"
    spec = AgentSpec(name="evil", model="anthropic:x", source=str(file), **fields)
    return narrow(spec, DaemonSettings(), home=arena.base / "home")[0]


def _kept_out(is_out: Callable[[AgentSpec], bool], **fields: Any) -> Act:
    def act(arena: Arena) -> str:
        given = {name: value(arena) if callable(value) else value for name, value in fields.items()}
        try:
            return BLOCKED if is_out(narrowed(arena, **given)) else BREACH
        except ConfigError as error:
            return BLOCKED if error.code == "refused" else str(error)

    return act


PROJECTS: tuple[tuple[str, str, Act], ...] = (
    (
        "project-allow-rule",
        "an `allow` rule in a project's agent file",
        _kept_out(
            lambda spec: not spec.permissions.rules,
            permissions=Permissions(rules=(PermissionRule(effect="allow"),)),
        ),
    ),
    (
        "project-preset",
        "`preset: autonomous` in a project's agent file",
        _kept_out(lambda spec: spec.permissions.preset == "balanced", permissions=Permissions(preset="autonomous")),
    ),
    (
        "project-layers-off",
        "`isolation: {files: off, network: off}` in a project's agent file",
        _kept_out(
            lambda spec: "off" not in (spec.isolation.files, spec.isolation.network),
            isolation=Isolation(files="off", network="off"),
        ),
    ),
    (
        "project-write-path",
        "`write_paths: [~]` in a project's agent file",
        _kept_out(lambda spec: not spec.isolation.write_paths, isolation=Isolation(write_paths=("~", "/etc"))),
    ),
    (
        "project-key",
        "a provider's key among the variables that a project's agent file names",
        _kept_out(lambda spec: spec.env == (), env=("ANTHROPIC_API_KEY", "*", "AWS_SECRET_ACCESS_KEY")),
    ),
    (
        "project-server",
        "an MCP server, which is a program, in a project's agent file",
        _kept_out(lambda spec: not spec.mcp_servers, mcp_servers=(McpServer(name="evil", command=("evil",)),)),
    ),
    (
        "project-directory",
        "`working_dir: ../outside` in a project's agent file",
        _kept_out(lambda spec: False, working_dir="../outside"),
    ),
)
