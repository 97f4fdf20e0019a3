"""One agent file → one spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.errors import ConfigError
from ottod.protocol.artifact_kinds import standard_schema
from ottod.protocol.specs import AgentSpec, Budgets, Isolation, Limits, McpServer, Permissions, Restart
from ottod.settings.agent_file import check_agent, check_spec, digest, parse_agent, read_agent, spec_errors
from ottod.settings.agents import BUILTIN_DIR
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.settings.sections import DaemonSettings, IsolationSettings

FULL = b"""\
name: fixer
description: Fixes
model: fast
fallback_models: [gpt-6]
tools: fs_read, grep
tags: one two
system_prompt: |
  Do it.
budgets: {seconds: 3m, tokens: 80_000, usd: 0.80}
limits: {memory_bytes: 512 MiB, tool_timeout_s: 90, max_steps: 7}
restart: transient
permissions: strict
isolation: {network: off, memory: required}
env: [CI, "NPM_*"]
mcp_servers:
  - {name: docs, command: [docs-server, --stdio]}
output_schema: {type: object, properties: {a: {type: string}}}
time_slice_s: 1h30m
"""


def test_a_backoff_that_begins_above_its_bound_is_refused() -> None:
    """The error stands at the value that is too large, and says both ways out."""
    text = b"name: a\nrestart:\n  policy: transient\n  backoff: {base_s: 90s}\n"
    spec, errors = parse_agent(text, file="/p/a.yml")
    assert spec is None
    assert [(e.line, e.mend) for e in errors] == [(4, "write `max_s: 90` or more, or a smaller base_s")]


def test_a_full_file_gives_the_spec() -> None:
    """Every short form, size and duration means what it says; digest and source are the loader's."""
    spec, errors = parse_agent(FULL, file="/p/fixer.yml")
    assert errors == []
    assert spec is not None
    assert spec == AgentSpec(
        name="fixer",
        description="Fixes",
        model="fast",
        fallback_models=("gpt-6",),
        tools=("fs_read", "grep"),
        tags=("one", "two"),
        system_prompt="Do it.\n",
        budgets=Budgets(seconds=180.0, tokens=80_000, usd=0.8),
        limits=Limits(memory_bytes=512 << 20, tool_timeout_s=90.0, max_steps=7),
        restart=Restart(policy="transient"),
        permissions=Permissions(preset="strict"),
        isolation=Isolation(network="off", memory="required"),
        env=("CI", "NPM_*"),
        mcp_servers=(McpServer(name="docs", command=("docs-server", "--stdio")),),
        output_schema={"type": "object", "properties": {"a": {"type": "string"}}},
        time_slice_s=5400.0,
        digest=digest(spec),
        source="/p/fixer.yml",
    )
    assert len(spec.digest) == 64


def test_markdown_is_front_matter_and_a_prompt() -> None:
    """The body is the system prompt, the rest as in YAML; the name comes from the file."""
    data = b"---\ndescription: R\ntools: [grep]\n---\n\n# Role\n\nYou review.\n---\nNot a fence.\n"
    spec, errors = parse_agent(data, file="/p/rev.md")
    assert errors == []
    assert spec is not None
    assert (spec.name, spec.tools) == ("rev", ("grep",))
    assert spec.system_prompt == "# Role\n\nYou review.\n---\nNot a fence."


def test_windows_line_ends_are_no_error() -> None:
    """A Markdown agent saved with CRLF reads as without."""
    spec, errors = parse_agent(b"---\r\nmodel: fast\r\n---\r\nHi\r\n", file="/p/a.md")
    assert errors == []
    assert spec is not None
    assert (spec.model, spec.system_prompt) == ("fast", "Hi")


def test_the_digest_is_of_what_is_said() -> None:
    """Layout, comments, order and place do not change it; a changed field does."""
    one, _ = parse_agent(b"model: fast\nbudgets: {seconds: 60}\n", file="/p/a.yml")
    two, _ = parse_agent(b"# hello\nbudgets:\n  seconds: 1m\nname: a\nmodel: fast\n", file="/q/a.yml")
    other, _ = parse_agent(b"model: fast\nbudgets: {seconds: 61}\n", file="/p/a.yml")
    assert one and two and other
    assert one.digest == two.digest != other.digest


WRONG = [
    ("a.yml", "modle: x\n", "1:1: unknown key 'modle' — did you mean 'model'?", "write 'model'"),
    ("a.yml", "budgets:\n  uds: 1\n", "2:3: unknown key 'uds' in 'budgets' — did you mean 'usd'?", "write 'usd'"),
    ("a.yml", "budgets: {usd: -1}\n", "1:16: budgets.usd must be a number (≥ 0), got -1", "write a number (≥ 0)"),
    (
        "a.yml",
        "budgets: {seconds: soon}\n",
        "1:20: budgets.seconds must be a duration such as 30s or 5m (≥ 0 and ≤ 365d), got 'soon'",
        "write a duration such as 30s or 5m (≥ 0 and ≤ 365d)",
    ),
    ("a.yml", "http: {hosts: [http://a]}\n", "1:16: http.hosts[0]: 'http://a' is no host", None),
    ("a.yml", "http: {local: [localhost]}\n", "1:16: http.local[0]: 'localhost' is no local place", None),
    (
        "a.yml",
        "git: {author: nobody}\n",
        "1:15: git.author is no author: 'nobody'",
        "write `Name <name@example.org>`",
    ),
    *(
        (
            "a.yml",
            f"permissions: {{rules: [{{effect: allow, {key}: ''}}]}}\n",
            f"1:{41 + len(key)}: an empty {key} is no condition",
            "leave the key out to match everything",
        )
        for key in ("tool", "agent", "path", "command", "host", "target", "run_mode", "permission")
    ),
    *(
        (
            "a.yml",
            f"isolation: {{{key}: ['']}}\n",
            f"1:{16 + len(key)}: isolation.{key}[0] is empty, which is no directory",
            "write `.` for the working directory, or leave it out",
        )
        for key in ("read_paths", "write_paths")
    ),
    *(
        (
            "a.yml",
            f"group: {{max_restarts: {count}, period_s: {period}}}\n",
            f"1:23: group: {count} restarts in {period} s is no limit: nothing crashes more often than that",
            "write what is too often, such as `max_restarts: 3` and `period_s: 60s`; 0 allows no restart",
        )
        for count, period in (("10000", "0.001"), ("1000", "5"), ("1", "0.05"))
    ),
    ("a.yml", "limits: {max_concurrent: {shel: 1}}\n", "1:33: a cap for the unknown tool 'shel'", None),
    ("a.yml", "name: b\n", "1:7: name 'b' differs from the file's name 'a'", "make them equal"),
    (
        "a.yml",
        "name: A b\n",
        "1:7: name must be a string (lower-case letters, digits, - and _), got 'A b'",
        "write a string (lower-case letters, digits, - and _)",
    ),
    (
        "a.yml",
        "fallback: [model, human, rul]\n",
        "1:26: fallback[2] must be one of model, cache, rule, human, got 'rul'",
        "did you mean 'rule'?",
    ),
    ("a.yml", "fallback: [cache, cache]\n", "1:19: fallback lists 'cache' twice", "remove one of the two"),
    (
        "a.yml",
        "fallback: model, rule\n",
        "1:11: fallback has `rule`, and there is no fallback_answer",
        "add `fallback_answer:` with a text",
    ),
    (
        "a.yml",
        "fallback: [rule, human]\nfallback_answer: Later.\n",
        "1:18: nothing behind `rule` in fallback is reached",
        "move `rule` to the end, or remove what follows",
    ),
    (
        "a.yml",
        "fallback_answer: I cannot say.\n",
        "1:18: fallback_answer is never given: fallback has no `rule`",
        "write `fallback: [model, rule]`",
    ),
    (
        "a.yml",
        "fallback: [cache]\nfallback_models: [fast]\n",
        "2:18: fallback_models are never asked: fallback has no `model`",
        "write `fallback: [model, cache]`, or remove them",
    ),
    ("a.yml", "digest: x\n", "1:1: key 'digest' is filled in by Otto", "remove it"),
    ("a.yml", "source: x\n", "1:1: key 'source' is filled in by Otto", "remove it"),
    (
        "a.yml",
        "tools: [grep, fs_reed]\n",
        "1:15: unknown tool 'fs_reed' — did you mean 'fs_read'?",
        "write 'fs_read'",
    ),
    (
        "a.yml",
        "tools: [teleport]\n",
        "1:9: unknown tool 'teleport'",
        f"use one of: {', '.join(sorted(BUILTIN_TOOL_NAMES))}",
    ),
    ("a.yml", "tools: [grep, grep]\n", "1:15: tool 'grep' is listed twice", "remove one of the two"),
    (
        "a.yml",
        "restart: transent\n",
        "1:10: restart.policy must be one of permanent, transient, temporary, got 'transent'",
        "did you mean 'transient'?",
    ),
    (
        "a.yml",
        "isolation: {network: maybe}\n",
        "1:22: isolation.network must be one of required, preferred, off, got 'maybe'",
        "use one of: off, preferred, required",
    ),
    (
        "a.yml",
        "permissions:\n  rules:\n    - {tool: shell}\n",
        "3:7: missing key 'effect' in 'permissions.rules[0]'",
        "add `effect:` with one of allow, ask, deny",
    ),
    (
        "a.yml",
        "mcp_servers: [{name: x}]\n",
        "1:15: MCP server 'x' needs either a command or a URL",
        "write `command: [program, argument]` or `url:`, not both",
    ),
    (
        "a.yml",
        "env: [A=1]\n",
        "1:7: env[0] is not a variable's name: 'A=1'",
        "write names only, without values",
    ),
    ("a.yml", "model: strng\n", "1:8: unknown model 'strng'", "did you mean 'strong'?"),
    (
        "a.yml",
        "fallback_models: [fast, openay:x]\n",
        "1:25: model 'openay:x' names an unknown provider 'openay'",
        None,
    ),
    ("a.md", "just text\n", "1:1: no front matter", "begin with a line `---`, keys, and a line `---`"),
    ("a.md", "---\nmodel: fast\n", "1:1: the front matter has no end", "close it with a line `---`"),
    ("a.md", "---\nmodel: fast\nmodle: x\n---\nhi\n", "3:1: unknown key 'modle' — did you mean 'model'?", None),
    (
        "a.md",
        "---\nsystem_prompt: x\n---\nhi\n",
        "2:1: system_prompt is given twice: here and as the body",
        "keep the body, remove the key",
    ),
]


@pytest.mark.parametrize(("name", "text", "message", "mend"), WRONG, ids=[m for _, _, m, _ in WRONG])
def test_a_wrong_agent_is_named_exactly(tmp_path: Path, name: str, text: str, message: str, mend: str | None) -> None:
    """Each mistake gives one line with file, line and column, and a mend."""
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_agent(file, settings=DaemonSettings())
    assert str(caught.value) == f"{file}:{message}"
    assert caught.value.mend == mend if mend is not None else caught.value.mend


def test_a_file_name_that_is_no_agents_name() -> None:
    """The file's name is the agent's, so it must be one."""
    spec, errors = parse_agent(b"model: fast\n", file="/p/My Agent.yml")
    assert spec is None
    assert str(errors[0]) == "/p/My Agent.yml: 'My Agent' is not an agent's name"


def test_all_mistakes_are_listed(tmp_path: Path) -> None:
    """`check_agent` gives every mistake of a file, in file order."""
    file = tmp_path / "a.yml"
    file.write_text("modle: x\nlimits: {max_steps: 0}\nbudgets: {usd: free}\ntools: 5\n")
    _, errors = check_agent(file)
    assert [e.line for e in errors] == [1, 2, 3, 4]


def test_layers_that_a_file_does_not_mention_are_the_daemons() -> None:
    """A stricter daemon makes silent agents stricter; what a file says stays."""
    strict = DaemonSettings(isolation=IsolationSettings(memory="required", network="required"))
    spec, _ = parse_agent(b"isolation: {network: off}\n", file="/p/a.yml", settings=strict)
    assert spec is not None
    assert spec.isolation == Isolation(memory="required", network="off")


@given(st.binary(max_size=200), st.sampled_from(["/p/a.yml", "/p/a.md"]))
def test_any_bytes_give_a_spec_or_config_errors(data: bytes, file: str) -> None:
    """No content raises anything, and there is a spec exactly when there is no error."""
    spec, errors = parse_agent(data, file=file)
    assert (spec is None) == bool(errors)


FIELDS = sorted(set(AgentSpec.__struct_fields__))
VALUES = st.sampled_from(
    ["x", "fast", "[]", "[grep]", "{}", "5", "-1", "1.5", "true", "10s", "1 GiB", "{usd: 1}", "~", "[{name: x}]"]
)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
def test_any_fields_give_a_spec_or_placed_errors(fields: dict[str, str]) -> None:
    """Each error of a file that is YAML names a line of it."""
    text = "".join(f"{key}: {value}\n" for key, value in fields.items())
    spec, errors = parse_agent(text.encode() or b"name: a\n", file="/p/a.yml", settings=DaemonSettings())
    assert (spec is None) == bool(errors)
    assert all(1 <= e.line <= len(fields) and e.column and e.mend for e in errors)
    if spec is not None:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=AgentSpec) == spec


# ---------------------------------------------------------------- specs from Python


def test_a_right_spec_gets_its_digest() -> None:
    """A spec made in Python is checked and gets the digest that its file would have."""
    spec = check_spec(AgentSpec(name="a", tools=("grep",), budgets=Budgets(usd=1)))
    from_file, _ = parse_agent(b"tools: [grep]\nbudgets: {usd: 1}\n", file="/p/a.yml")
    assert from_file is not None
    assert spec.digest == from_file.digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budgets": Budgets(usd=-1)}, "budgets.usd must be a number (≥ 0), got -1"),
        ({"budgets": {"uds": 1}}, "unknown key 'uds' in 'budgets' — did you mean 'usd'?"),
        ({"tools": ("fs_reed",)}, "unknown tool 'fs_reed' — did you mean 'fs_read'?"),
        ({"tools": ("grep", 5)}, "tools[1] must be a string, got 5"),
        ({"restart": "transient"}, "restart must be a mapping, got 'transient'"),
        ({"name": "A b"}, "name must be a string (lower-case letters, digits, - and _), got 'A b'"),
        ({"model": "strng"}, "unknown model 'strng'"),
        ({"working_dir": "a\0b"}, "working_dir holds a NUL or half a character"),
        ({"system_prompt": "\ud800"}, "system_prompt holds a NUL or half a character"),
    ],
)
def test_a_wrong_spec_is_named_by_field(fields: dict[str, object], message: str) -> None:
    """Structs do not check their fields when they are made; the check names the field's path."""
    spec = AgentSpec(**({"name": "a"} | fields))  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        check_spec(spec, settings=DaemonSettings())
    assert str(caught.value) == message
    assert caught.value.mend


def test_a_spec_that_holds_an_object_is_an_error() -> None:
    """What cannot be encoded is refused, not raised about."""
    (error,) = spec_errors(AgentSpec(name="a", output_schema={"f": object()}))
    assert "not data" in str(error)


def test_the_builtin_lead_can_do_all_that_a_lead_does() -> None:
    """Start others and wait for them, ask them again, speak to one or to all, and end what is not wanted any more."""
    found = read_agent(BUILTIN_DIR / "lead.yml")
    team = {"spawn_agent", "ask_agent", "await_agents", "stop_agent", "send_message", "broadcast", "list_agents"}
    assert team <= set(found.tools)
    assert all(f"`{tool}`" in found.system_prompt for tool in ("ask_agent", "await_agents", "stop_agent"))


def test_every_builtin_agent_is_right() -> None:
    """The shipped agents load, name known tools and models, have a prompt, a description and budgets."""
    files = sorted(BUILTIN_DIR.glob("*"))
    assert {f.stem for f in files} >= {"assistant", "coder", "reviewer"}
    for file in files:
        spec = read_agent(file, settings=DaemonSettings())
        assert spec.description
        assert len(spec.system_prompt) > 400
        assert spec.budgets.usd
        assert spec.model == "default"
    writing = {"fs_write", "fs_edit", "shell", "test_runner", "git"}
    for name in (
        "reviewer",
        "code-reviewer",
        "researcher",
        "architect",
        "product-manager",
        "ux-designer",
        "summarizer",
    ):
        assert not writing & set(read_agent(BUILTIN_DIR / f"{name}.yml").tools)


@pytest.mark.parametrize(
    ("agent", "kind"),
    [("code-reviewer", "review_report"), ("test-runner", "test_report"), ("tester", "test_report")],
)
def test_reports_of_builtin_agents_are_of_the_agreed_kind(agent: str, kind: str) -> None:
    """Their final answer has the schema that workflows hold such reports to; what is for people may differ."""

    def bare(schema: Any) -> Any:
        if isinstance(schema, dict):
            return {key: bare(value) for key, value in schema.items() if key != "description"}
        return [bare(value) for value in schema] if isinstance(schema, list) else schema

    assert bare(read_agent(BUILTIN_DIR / f"{agent}.yml").output_schema) == bare(standard_schema(kind))


def test_what_an_answer_must_be_is_checked_where_it_is_written() -> None:
    """A keyword that is not carried out, or a wrong argument, has its line and the keywords there are."""
    text = b"name: a\noutput_schema:\n  type: object\n  properties:\n    n: {type: int}\n  minContains: 2\n"
    _, errors = parse_agent(text, file="/p/a.yml")
    assert [(e.line, "output_schema" in e.message) for e in errors] == [(5, True), (6, True)]
    assert "minContains" in errors[1].message and "uniqueItems" in errors[1].mend
    (error,) = spec_errors(AgentSpec(name="a", output_schema={"properties": {"n": {"pattern": "("}}}))
    assert "output_schema.properties.n.pattern" in error.message or "pattern" in error.message


def test_how_a_session_is_kept_in_health_has_short_and_full_forms() -> None:
    """Each kind has its own count; what is not given is the default; a wrong response names the right ones."""
    spec, errors = parse_agent(
        b"fallback_models: [fast]\ncontext: {compact_at: 0.5, summary_model: fast}\n"
        b"health: {loop: {after: 3, do: stop}, tool_errors: {do: off}}\n",
        file="/p/a.yml",
        settings=DaemonSettings(),
    )
    assert errors == [] and spec is not None
    assert (spec.health.loop.after, spec.health.loop.do, spec.health.tool_errors.do) == (3, "stop", "off")
    assert (spec.health.tool_errors.after, spec.health.no_progress.do) == (6, "warn")
    assert (spec.context.compact_at, spec.context.keep_recent) == (0.5, 0.2)
    for wrong in (b"health: {loop: {do: halt}}", b"health: {loop: {after: 1}}", b"context: {summary_model: gone}"):
        _, (error,) = parse_agent(wrong, file="/p/a.yml", settings=DaemonSettings())
        assert error.line == 1


SERVER = "mcp_servers: [{name: github, command: [server]}]\n"


@pytest.mark.parametrize(
    ("text", "message", "mend"),
    [
        ("tools: [github__x]\n", "1:9: unknown tool 'github__x'", "add a server named 'github' to mcp_servers"),
        ("tools: [project__x]\n", "1:9: unknown tool 'project__x'", "project_may.tools is false"),
        ("tools: [user__x]\n", "1:9: unknown tool 'user__x'", "there is no @tool in the tools/ directory"),
        ("mcp_servers: [{name: user, command: [x]}]\n", "1:22: an MCP server cannot be called 'user'", "at most 32"),
        ("mcp_servers: [{name: a__b, command: [x]}]\n", "an MCP server cannot be called 'a__b'", "at most 32"),
        ("mcp_servers: [{name: a, url: 'http://x', env: [Y]}]\n", "env has no effect without command", "remove env"),
        ("mcp_servers: [{name: a, command: [x], headers: {Y: z}}]\n", "headers has no effect without url", "remove"),
        ("mcp_servers: [{name: a, url: 'http://x', headers: {'Y y': z}}]\n", "not an HTTP header: 'Y y'", "write"),
        ("mcp_servers: [{name: a, command: [x], env: ['Y=1']}]\n", "not a variable's name: 'Y=1'", "names only"),
    ],
)
def test_a_wrong_server_or_tool_is_named(text: str, message: str, mend: str) -> None:
    """Tools of servers that are not there, names that cannot be, and keys without effect say what would mend them."""
    spec, errors = parse_agent(text.encode(), file="/p/a.yml")
    assert spec is None
    assert message in errors[0].message and mend in errors[0].mend, (errors[0].message, errors[0].mend)


@pytest.mark.parametrize("tools", ["[github__*]", "[github__create_issue, grep]"])
def test_tools_of_a_listed_server_are_known(tools: str) -> None:
    """Whatever is named after a server of the file is accepted, in rules as well: only the server knows its tools."""
    rules = "permissions: {rules: [{effect: ask, tool: github__create_issue}]}\n"
    spec, errors = parse_agent((f"tools: {tools}\n" + SERVER + rules).encode(), file="/p/a.yml")
    assert errors == [] and spec is not None
