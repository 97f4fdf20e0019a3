"""Agents and workflows as `show` prints them: in the words of their files, a rule a line."""

from __future__ import annotations

import pytest

from ottoctl.rendering.agents import agent_page
from ottoctl.rendering.workflows import workflow_page
from ottod.protocol.specs import AgentSpec, Budgets, Limits, McpServer, PermissionRule, Permissions
from ottod.protocol.workflows import Step, WorkflowSpec
from ottod.settings.agents import AgentEntry
from ottod.settings.workflows import WorkflowEntry

RULES = (
    PermissionRule(effect="ask", tool="shell", command="git push*", reason="others see it", source="a.yml:8"),
    PermissionRule(effect="deny", path="secrets/**", agent="coder", source="a.yml:9"),
    PermissionRule(effect="allow", expires_s=7200.0),
)
PERMISSIONS = [
    "permissions        preset: strict",
    "                   - ask tool: shell, command: git push* # a.yml:8: others see it",
    "                   - deny path: secrets/**, agent: coder # a.yml:9",
    "                   - allow everything, expires_s: 2h",
]


def page(spec: AgentSpec) -> list[str]:
    return agent_page(AgentEntry(name=spec.name, layer="user", source="a.yml", spec=spec), color=False).splitlines()


def test_rules_stand_below_each_other() -> None:
    """Each with where it stands and why; an agent without rules says so."""
    lines = page(AgentSpec(name="a", permissions=Permissions(preset="strict", rules=RULES)))
    at = lines.index(PERMISSIONS[0])
    assert lines[at : at + 4] == PERMISSIONS
    assert "permissions        preset: balanced, rules: -" in page(AgentSpec(name="a"))


def test_values_are_those_of_a_file() -> None:
    """Words, sizes and durations as they would be written; what is not said is `-`."""
    lines = page(
        AgentSpec(
            name="a",
            learn=True,
            tools=("shell", "grep"),
            budgets=Budgets(seconds=3600, usd=1.5),
            limits=Limits(memory_bytes=64 << 20, max_per_role={"coder": 2}),
            mcp_servers=(McpServer(name="x", command=("run", "it")), McpServer(name="y", url="http://y.example")),
        )
    )
    text = "\n".join(lines)
    assert "learn              true" in lines and "cacheable          false" in lines
    assert "tools              shell grep" in lines
    assert "budgets            seconds: 1h, tokens: -, usd: 1.5" in lines
    assert "memory_bytes: 64 MiB" in text and 'max_per_role: {"coder":2}' in text
    assert "\nmcp_servers        - name: x, command: [run, it], url: -" in text
    assert f"\n{' ' * 19}- name: y, command: -, url: http://y.example" in text
    assert "True" not in text and "False" not in text and "None" not in text


def test_no_tool_is_not_every_tool() -> None:
    """An empty list is shown where it says something else than no list."""
    servers = (
        McpServer(name="x", url="u", include=()),
        McpServer(name="y", url="u"),
        McpServer(name="z", include=("a",)),
    )
    text = "\n".join(page(AgentSpec(name="a", mcp_servers=servers)))
    assert [part.split(", exclude")[0] for part in text.split("include: ")[1:]] == ["[]", "-", "[a]"]
    assert "exclude: []" not in text and "env: []" not in text


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nnote               b"])
def test_a_rule_is_one_line(hostile: str) -> None:
    """Whatever it says."""
    rules = (PermissionRule(effect="deny", path=hostile, reason=hostile),)
    plain = (PermissionRule(effect="deny", path="x", reason="x"),)
    shown, usual = (page(AgentSpec(name="a", permissions=Permissions(rules=r))) for r in (rules, plain))
    assert len(shown) == len(usual) and "\x1b" not in "\n".join(shown)


def test_a_workflows_rules_are_shown() -> None:
    """Below its preset, like an agent's."""
    spec = WorkflowSpec(
        name="w",
        steps=(Step(id="a", agent="coder"),),
        permissions=Permissions(preset="strict", rules=RULES),
        git_branch=True,
    )
    entry = WorkflowEntry(name="w", layer="user", source="w.yml", spec=spec)
    lines = workflow_page(entry, color=False).splitlines()
    at = lines.index("permissions  preset: strict")
    assert [line.strip() for line in lines[at + 1 : at + 4]] == [line.strip() for line in PERMISSIONS[1:]]
    assert "git_branch   true" in lines
