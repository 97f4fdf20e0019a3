"""Where an agent's file says something in vain, and how the warning reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ottod.errors import ConfigError
from ottod.settings.agent_file import agent_source, check_agent
from ottod.settings.agent_places import agent_warnings, placed_model_error
from ottod.settings.policy import narrow
from ottod.settings.sections import DaemonSettings

SETTINGS = DaemonSettings()
RULES = "permissions:\n  rules:\n"
CASES = [
    (
        "permissions: autonomous\n",
        ["1:14 permissions.preset: autonomous narrowed to balanced"],
        "{preset: autonomous}",
    ),
    (
        "permissions:\n  rules:\n    - {effect: ask}\n    - {effect: allow}\n    - {effect: allow, tool: shell}\n",
        ["4:7 permissions.rules[1]: an allow rule is dropped", "5:7 permissions.rules[2]: an allow rule is dropped"],
        "of your own",
    ),
    ("env:\n  - LANG\n  - NO_SUCH\n", ["3:5 env: NO_SUCH dropped"], "`project_may: {env: [NO_SUCH]}`"),
    ("http:\n  hosts: [a.example]\n", ["2:11 http.hosts: a.example dropped"], "{http_hosts: [a.example]}"),
    ("isolation: {memory: 'off'}\n", ["1:13 isolation.memory: off raised to preferred"], "remove it"),
    (
        "isolation:\n  read_paths: [., /opt/x]\n",
        ["2:19 isolation.read_paths: /opt/x dropped"],
        "{read_paths: [/opt/x]}",
    ),
    ("mcp_servers:\n  - {name: a, command: [x]}\n", ["2:5 mcp_servers: a dropped"], "{mcp_servers: true}"),
    (
        "handoffs: [coder, specialst]\nlimits: {max_per_role: {researcer: 3, xyz: 1}}\n",
        [
            "1:19 handoffs: unknown agent 'specialst' — did you mean 'specialist'?",
            "2:25 limits.max_per_role: unknown agent 'researcer' — did you mean 'researcher'?",
            "2:39 limits.max_per_role: unknown agent 'xyz'",
        ],
        "write 'specialist'",
    ),
    ("handoffs: coder\npermissions: strict\n", [], ""),
    (
        f"{RULES}    - {{effect: deny, agent: codr}}\n    - {{effect: ask, target: specialst}}\n",
        [
            "3:29 permissions.rules[0].agent: unknown agent 'codr' — did you mean 'coder'?",
            "4:29 permissions.rules[1].target: unknown agent 'specialst' — did you mean 'specialist'?",
        ],
        "write 'coder'",
    ),
    (
        f"{RULES}    - {{effect: ask, agent: xyz}}\n",
        ["3:28 permissions.rules[0].agent: unknown agent 'xyz'"],
        "one of",
    ),
    # Patterns, agents that there are, and names that sessions may bear.
    (
        f"{RULES}    - {{effect: deny, agent: 'cod*', target: coder}}\n    - {{effect: ask, target: coder-2}}\n",
        [],
        "",
    ),
]


@pytest.mark.parametrize(("text", "said", "mend"), CASES)
@pytest.mark.parametrize("ending", ["yml", "md"])
def test_what_is_said_in_vain(tmp_path: Path, text: str, said: list[str], mend: str, ending: str) -> None:
    """A line each, where it stands, with what to do; in Markdown a line further down."""
    file = tmp_path / f".otto/agents/a.{ending}"
    file.parent.mkdir(parents=True)
    file.write_text(text if ending == "yml" else f"---\n{text}---\nYou help.\n")
    spec, errors = check_agent(file, settings=SETTINGS)
    assert spec is not None, errors
    _, notes = narrow(spec, SETTINGS, home=Path("/nowhere"))
    agents = {"coder", "researcher", "specialist"}
    found = agent_warnings(spec, agent_source(str(file)), notes=notes, agents=agents)
    shift = 1 if ending == "md" else 0
    told = [f"{e.line - shift}:{e.column} {e.message.split(': ', 1)[1]}" for e in found]
    assert len(told) == len(said) and all(t.startswith(s) for t, s in zip(told, said, strict=True)), told
    assert all(e.mend and e.file == str(file) for e in found)
    assert not found or mend in found[0].mend


def test_a_model_without_its_script_has_a_place(tmp_path: Path) -> None:
    """The line that names it; a model that the file does not name has none."""
    file = tmp_path / "a.yml"
    file.write_text("model: default\nfallback_models:\n  - scripted:x.yml\n")
    spec, _ = check_agent(file)
    assert spec is not None
    error = ConfigError("no script at /x.yml", mend="check the path")
    error.code = "no_script"
    placed = placed_model_error(error, spec, "scripted:x.yml")
    assert str(placed) == f"{file}:3:5: fallback_models: no script at /x.yml"
    assert (placed.code, placed.mend) == (error.code, error.mend)
    assert placed_model_error(error, spec, "default").line == 1
    assert placed_model_error(error, spec, "other") is error
    assert placed_model_error(error, msgspec.structs.replace(spec, source=""), "default") is error
