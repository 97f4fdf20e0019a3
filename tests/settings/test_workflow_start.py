"""What has to be there before a workflow starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ottod.errors import ConfigError, RefusedError
from ottod.protocol.artifacts import MAX_ARTIFACT_BYTES
from ottod.protocol.specs import AgentSpec
from ottod.protocol.workflows import (
    Compensation,
    ResolvedWorkflow,
    Retry,
    Route,
    Step,
    WorkflowInput,
    WorkflowSpec,
)
from ottod.settings.workflow_start import check_inputs, needs

FORM = {"type": "object", "required": ["goal"]}


def test_whom_the_steps_want() -> None:
    """Each agent with each model that stands in for its own, once; who undoes keeps the own; no summaries."""
    retry = Retry(attempts=2, fallback_agent="b")
    block = Step(
        id="block",
        mode="parallel",
        steps=(
            Step(id="one", agent="a", model="m", retry=retry, compensate=Compensation(agent="a", task="undo")),
            Step(id="two", route=Route(tags=("x",))),
            Step(id="three", agent="a", model="m"),
        ),
    )
    agents = tuple(AgentSpec(name=name) for name in ("a", "b", "c", "summarizer"))
    workflow = ResolvedWorkflow(spec=WorkflowSpec(name="w", steps=(block,)), agents=agents, routed={"two": "c"})
    found = [(need.agent.name, need.model, need.step) for need in needs(workflow)]
    assert found == [("a", "m", "one"), ("b", "m", "one"), ("a", "", "one"), ("c", "", "two")]


def spec(**fields: object) -> WorkflowSpec:
    return WorkflowSpec(name="w", inputs=(WorkflowInput(name="plan", **fields),))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"not json", b"\xff", b"[" * 100_000, b"{}"])
def test_what_does_not_satisfy_its_schema(tmp_path: Path, content: bytes) -> None:
    """Given, or in a file that may as well be missing: the same words."""
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^the input plan of w is not ") as given:
        check_inputs(spec(schema=FORM), {"plan": content}, str(tmp_path))
    with pytest.raises(ConfigError, match=r"^the input plan \(plan.json\) of w is not ") as read:
        check_inputs(spec(schema=FORM, file="plan.json", required=False), {}, str(tmp_path))
    assert read.value.message.replace(" (plan.json)", "") == given.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, no file, too large, or reached by a link that leads out: an error if it is required, else nothing.
    None is waited for."""
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "secret").write_text("{}")
    (there / "link").symlink_to(tmp_path / "secret")
    (there / "directory").mkdir()
    os.mkfifo(there / "fifo")
    with (there / "large").open("wb") as stream:
        stream.truncate(MAX_ARTIFACT_BYTES + 1)
    for name in ("missing", "link", "directory", "fifo", "large"):
        check_inputs(spec(file=name, required=False, schema=FORM), {}, str(there))
        for schema in ({}, FORM):
            with pytest.raises(ConfigError, match=f"needs the input plan, and {name} cannot be read: ") as caught:
                check_inputs(spec(file=name, schema=schema), {}, str(there))
            assert caught.value.mend == "write it there, or give it: --input plan=@FILE"
    (there / "inner").symlink_to("large")
    (there / "large").write_text("{}")
    check_inputs(spec(file="inner"), {}, str(there))


def test_what_is_given(tmp_path: Path) -> None:
    """Names that are known, all that are required, and not too much of it."""
    check_inputs(spec(required=False), {}, str(tmp_path))
    for given, words in (({"plna": b"", "plan": b""}, "takes no input 'plna'"), ({}, "needs the input plan$")):
        with pytest.raises(ConfigError, match=words):
            check_inputs(spec(), given, str(tmp_path))
    with pytest.raises(RefusedError, match="inputs of more than"):
        check_inputs(spec(), {"plan": b"x" * (1024 * 1024 + 1)}, str(tmp_path))
