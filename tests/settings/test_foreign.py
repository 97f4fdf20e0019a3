"""What other systems call things: every word leads to one of ours, and files written from habit are told it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from ottod.protocol.specs import AgentSpec, HealthAction
from ottod.protocol.workflows import WorkflowSpec
from ottod.settings.agent_file import parse_agent
from ottod.settings.decode import fields_of
from ottod.settings.foreign import ELSEWHERE, KEYS, TOOLS, VALUES, own_key, written
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.settings.sections import DaemonSettings
from ottod.settings.workflow_file import parse_workflow


def kinds_in(annotation: Any) -> Iterator[Any]:
    """An annotation and all within it."""
    yield annotation
    for inner in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from kinds_in(inner)


def structs() -> list[type[msgspec.Struct]]:
    """All that a file can hold."""
    found: list[type[msgspec.Struct]] = [AgentSpec, WorkflowSpec, DaemonSettings]
    for struct in found:
        for field in fields_of(struct):
            for kind in kinds_in(field.type):
                if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in found:
                    found.append(kind)
    return found


def choices() -> set[str]:
    """Every value of a fixed choice."""
    kinds = [kind for struct in structs() for field in fields_of(struct) for kind in kinds_in(field.type)]
    return {str(value) for kind in (*kinds, HealthAction) if get_origin(kind) is Literal for value in get_args(kind)}


def test_every_word_leads_to_one_of_ours() -> None:
    """Nothing in the tables has gone stale: there is a mapping that has the key, a choice or a tool of that name."""
    places = [(struct, {field.encode_name for field in fields_of(struct)}) for struct in structs()]
    for key, ours in KEYS.items():
        assert any(own_key(key, struct, fields) for struct, fields in places), (key, ours)
        for path in ours:
            assert any(path.split(".")[0] in fields for _, fields in places), path
    assert {ours for words in VALUES.values() for ours in words} <= choices()
    assert {ours for words in TOOLS.values() for ours in words} <= set(BUILTIN_TOOL_NAMES)
    assert not set(TOOLS) & set(BUILTIN_TOOL_NAMES)
    assert all(word == word.lower() and "-" not in word for word in (*KEYS, *VALUES, *TOOLS, *ELSEWHERE))


def test_how_a_key_further_down_is_written() -> None:
    """As a mapping within the mapping."""
    assert written("needs") == "needs: …"
    assert written("restart.backoff.base_s") == "restart: {backoff: {base_s: …}}"


STEP = "mode: graph\nsteps:\n  - id: a\n    task: t\n    agent: coder\n"
WORKFLOWS = [
    (STEP + "  - {id: b, agent: coder, depends_on: [a]}\n", "unknown key 'depends_on'", "write 'needs'"),
    (STEP + "    timeout-minutes: 5\n", "unknown key 'timeout-minutes'", "write 'timeout_s'"),
    (STEP + "    prompt: hi\n", "did you mean 'task'?", "write 'task'"),
    (STEP + "    if: x\n", "did you mean 'when'?", "write 'when'"),
    (STEP + "    env: {A: b}\n", "unknown key 'env' in 'steps[0]'", "of the agent's own file"),
    (STEP + "    restart: always\n", "unknown key 'restart' in 'steps[0]'", "tried again with `retry`"),
    ("mode: dag\nsteps: []\n", "got 'dag'", "did you mean 'graph'?"),
    ("jobs: []\n", "did you mean 'steps'?", "write 'steps'"),
    ("do: []\n", "did you mean 'steps'?", "write 'steps'"),
    ("on: push\nsteps: []\n", "unknown key 'on'", "ottoctl workflow run"),
    ("steps: {build: {agent: coder}}\n", "steps must be a list of mappings, got a mapping", "each behind a `-`"),
]
AGENTS = [
    ("restart: always\n", "got 'always'", "did you mean 'permanent'?"),
    ("restart: on-failure\n", "got 'on-failure'", "did you mean 'transient'?"),
    ("restart: no\n", "got 'no'", "did you mean 'temporary'?"),
    ("restart: {RestartSec: 3}\n", "did you mean 'backoff.base_s'?", "write `backoff: {base_s: …}`"),
    ("prompt: hi\n", "did you mean 'system_prompt'?", "write 'system_prompt'"),
    ("timeout: 5m\n", "did you mean 'budgets.seconds'?", "write `budgets: {seconds: …}`"),
    ("mem_limit: 2g\n", "did you mean 'limits.memory_bytes'?", "write `limits: {memory_bytes: …}`"),
    ("environment: [A]\n", "did you mean 'env'?", "write 'env'"),
    ("health: {loop: {action: stop}}\n", "did you mean 'do'?", "write 'do'"),
    ("tools: [Bash]\n", "unknown tool 'Bash' — did you mean 'shell'?", "write 'shell'"),
    ("tools: [WebFetch]\n", "unknown tool 'WebFetch' — did you mean 'http'?", "write 'http'"),
]


@pytest.mark.parametrize(("text", "message", "mend"), WORKFLOWS)
def test_workflows_written_from_habit(text: str, message: str, mend: str) -> None:
    """The first mistake names our word, and only once."""
    errors = parse_workflow(text.encode(), file="/x/w.yml")[1]
    said = next(error for error in errors if message in error.message)
    assert mend in said.mend
    assert (said.message + said.mend).count("did you mean") <= 1


@pytest.mark.parametrize(("text", "message", "mend"), AGENTS)
def test_agents_written_from_habit(text: str, message: str, mend: str) -> None:
    """The same for agents."""
    errors = parse_agent(text.encode(), file="/x/a.yml")[1]
    said = next(error for error in errors if message in error.message)
    assert mend in said.mend
    assert (said.message + said.mend).count("did you mean") <= 1
