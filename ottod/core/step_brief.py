"""What the agent of a step is told: its task, what others left for it, what must be true of its work, what to leave.

And what of its work is kept as which artifact: an output that the agent has not kept itself may be its answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from ottod.protocol.workflows import Output, Step
from ottod.settings.placeholders import fill_in, placeholders_in
from ottod.settings.units import plural

WRITE_TOOL = "artifact_write"
READ_TOOL = "artifact_read"
MAX_BRIEF_CHARS = 900_000
"""A session's task has a limit; what is beyond it is cut."""


class Stand(msgspec.Struct, frozen=True, kw_only=True):
    """What stands for a text that is too long; `is_partial`: it tells of that one's beginning alone."""

    text: str
    is_partial: bool = False


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """An input as a step gets it: its text, or, if `is_summary`, what stands for it. `artifact` is its id."""

    name: str
    kind: str
    version: int
    size_bytes: int
    text: str
    is_summary: bool = False
    is_partial: bool = False
    artifact: str = ""


def answer_output(step: Step) -> Output | None:
    """The output that the agent's final answer is, or is if the agent has not kept it itself."""
    said = [output for output in step.outputs if output.capture == "answer"]
    free = [output for output in step.outputs if output.capture == "auto"]
    if said:
        return said[0]
    return free[0] if len(free) == 1 else None


def answer_schema(step: Step, tools: Collection[str]) -> dict[str, Any]:
    """What the agent's final answer has to be, in JSON Schema; empty if that is its own affair."""
    output = answer_output(step)
    if output is None or not output.schema:
        return {}
    return output.schema if output.capture == "answer" or WRITE_TOOL not in tools else {}


def brief(
    step: Step,
    *,
    task: str,
    iteration: int,
    handed: Sequence[Handed],
    tools: Collection[str],
    last_failure: str = "",
) -> str:
    """The text that a step's agent is given. `tools` are the agent's; `last_failure` is of the attempt before."""
    parts = [fill_in(step.task, task=task, iteration=iteration).strip()]
    if "task" not in placeholders_in(step.task) and step.task and task.strip():
        parts.append(f"It is a part of this:\n\n{task.strip()}")
    if last_failure:
        parts.append(f"Somebody has tried this before, and failed: {last_failure}")
    parts += [_input(each, tools) for each in handed]
    if step.acceptance:
        parts.append("What must be true of your work:\n" + "\n".join(f"- {each}" for each in step.acceptance))
    left = [told for output in step.outputs if (told := _output(output, step, tools))]
    if left:
        parts.append("What you leave:\n" + "\n".join(left))
    return "\n\n".join(part for part in parts if part)[:MAX_BRIEF_CHARS]


def failure_told(message: str, handed_back: str) -> str:
    """What an attempt is told of the one before it, which may have handed back what it had."""
    return f"{message}\n\nWhat they handed back:\n\n{handed_back}" if handed_back else message


def undo_brief(text: str, *, path: str, task: str, iteration: int, last_failure: str = "") -> str:
    """The text that the agent is given who undoes a step."""
    parts = [
        fill_in(text, task=task, iteration=iteration),
        f"What is to be undone is step {path} of a workflow that has failed.",
    ]
    if last_failure:
        parts.append(
            f"This has been tried before, and failed: {last_failure}\n\nWhat was undone then is undone: look at what"
            " is left to be done, and do nothing twice."
        )
    return "\n\n".join(parts)


def _input(handed: Handed, tools: Collection[str]) -> str:
    head = f'<artifact name="{handed.name}" kind="{handed.kind}" version="{handed.version}">'
    if not handed.is_summary:
        return f"{head}\n{handed.text.rstrip()}\n</artifact>"
    whole = f"This stands for {plural(handed.size_bytes, 'byte')}"
    if handed.is_partial:
        whole += ", and tells of their beginning alone"
    if READ_TOOL in tools:
        # By its id: the name may have a newer version, of somebody else's.
        whole += f'; {READ_TOOL} with artifact "{handed.artifact or handed.name}" gives you the whole'
    return f"{head}\n[{whole}.]\n\n{handed.text.rstrip()}\n</artifact>"


def _output(output: Output, step: Step, tools: Collection[str]) -> str:
    if output.capture == "diff":
        return f"- {output.name}: what you change in the working directory is kept; you need not do anything for it."
    own = output.capture == "artifact" or (output.capture == "auto" and WRITE_TOOL in tools)
    if own:
        how = f'keep it with {WRITE_TOOL}, name "{output.name}", kind "{output.kind}"'
        if output.capture == "auto" and answer_output(step) is output:
            how += ", or let your final answer be it"
    elif answer_output(step) is output:
        how = "your final answer is kept as it; let it be nothing else"
    else:
        return ""
    if not output.required:
        how += "; only if there is something to keep"
    return f"- {output.name} ({output.kind}): {how}.{_shape(output)}"


def _shape(output: Output) -> str:
    if not output.schema:
        return ""
    schema = json.dumps(output.schema, ensure_ascii=False, separators=(", ", ": "))
    return f" It is JSON that satisfies this schema: {schema}"
