"""The text of a new agent's or workflow's file: a commented template, or a copy of another under a new name. Pure."""

from __future__ import annotations

import re
import textwrap

from ottod.errors import OttoError
from ottod.settings.names import BUILTIN_TOOL_NAMES

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_NAME_LINE = re.compile(r"^name:.*$", re.MULTILINE)

TEMPLATE = """\
# An agent: what it may use, how much it may spend, and what it is told.
# Check this file with: ottoctl agent validate {name}
name: {name}
description: One line that says what this agent is good for.

# An alias (default, …) or provider:model, as in anthropic:claude-sonnet-4-5 or openai:gpt-5.
model: default

# Nothing is allowed that is not listed. Built in are:
{tools}
# Besides: SERVER__TOOL of MCP servers, user__NAME and project__NAME of Python files.
tools: [fs_read, fs_list, grep]

# Limits on one session, everything it starts included. Leave one out for no limit; 0 means none at all.
budgets: {{seconds: 30m, tokens: 1_000_000, usd: 5.00}}

# limits:
#   max_steps: 100            # model calls in one turn
#   max_parallel_tools: 8
#   tool_timeout_s: 2m        # output does not extend it
#   memory_bytes: 1 GiB

# Names of environment variables that a session takes over from whoever starts it.
# env: [LANG, TZ]

# Words that a router, or you in `ottoctl agent list`, can find it by.
tags: []

system_prompt: |
  You are given a task in one directory. Understand it first: read what it is about.
  Then do what was asked, no more, and report briefly what you did and how you checked it.
"""


WORKFLOW_TEMPLATE = """\
# A workflow: which agents do what, in which order, with what from each other.
# Check this file with: ottoctl workflow validate NAME
name: NAME
description: One line that says what this workflow is good for.

# Limits on the whole, every step included. A step may have less, never more.
budgets: {seconds: 2h, tokens: 5_000_000, usd: 20.00}

# Artifacts that it begins with: given by whoever starts it, or read from a file.
# inputs:
#   - {name: spec, file: docs/spec.md, required: false}

# How the steps run: sequential, parallel, loop or graph. A step may be a block with a mode and steps of its own.
mode: sequential
steps:
  - id: plan
    agent: architect
    # {{task}} is what the workflow is started with.
    task: "Plan this, and answer with the plan: {{task}}"
    outputs: [{name: design, capture: answer}]

  - id: build
    mode: loop
    max_iterations: 3
    until: {artifact: review_report, field: verdict, equals: approved}
    steps:
      - id: implement
        agent: implementer
        task: Carry out the plan. This is round {{iteration}}; if there is a review, mend what it blames.
        # What other steps leave, and nothing else, is put below the task.
        inputs: [design, review_report]
        outputs: [{name: code_diff, capture: diff}]
      - id: review
        agent: code-reviewer
        task: Review the change against the plan. Answer with the report as JSON and nothing else.
        inputs: [design, code_diff]
        outputs: [review_report]
        retry: 2
"""


_BUILTIN_TOOLS = textwrap.fill(
    ", ".join(BUILTIN_TOOL_NAMES), width=100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
)


def check_name(name: str, *, what: str = "an agent's name") -> None:
    """Raises OttoError for what is no name."""
    if not NAME.match(name):
        raise OttoError(
            f"{name!r} is not {what}",
            mend="use lower-case letters, digits, - and _, beginning with a letter",
            code="usage",
        )


def scaffold(name: str, source: str = "") -> str:
    """The file's text; with `source`, the text of another agent's file under the new name."""
    return _renamed(source, name) if source else TEMPLATE.format(name=name, tools=_BUILTIN_TOOLS)


def scaffold_workflow(name: str, source: str = "") -> str:
    """The file's text; with `source`, the text of another workflow's file under the new name."""
    return _renamed(source, name) if source else WORKFLOW_TEMPLATE.replace("NAME", name)


def _renamed(source: str, name: str) -> str:
    if _NAME_LINE.search(source):
        return _NAME_LINE.sub(f"name: {name}", source, count=1)
    return f"name: {name}\n{source}"
