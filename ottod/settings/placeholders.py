"""What stands for something else in the tasks of a workflow: `{{task}}` and `{{ iteration }}`."""

from __future__ import annotations

import re

PLACEHOLDERS = ("task", "iteration")
_PLACEHOLDER = re.compile(r"\{\{\s*([\w.-]*)\s*\}\}")


def placeholders_in(text: str) -> tuple[str, ...]:
    """The words that stand in braces, each once, also those that nobody fills in."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(text)))


def fill_in(text: str, *, task: str, iteration: int) -> str:
    """The text with its placeholders filled in; an empty one is the workflow's task. Others stay as they are."""
    values = {"task": task, "iteration": str(iteration)}
    # What the task itself contains is not looked into again.
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text or "{{task}}")
