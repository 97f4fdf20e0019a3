"""What other systems call the things that Otto has under names of its own: for whoever writes from habit.

The nearest spelling cannot know that Compose's `depends_on` is a workflow's `needs`. A word is looked up here only
where it is not valid, so nothing that is ours is ever taken for something else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

KEYS: dict[str, tuple[str, ...]] = {
    # What comes after what, and what there is to do.
    "depends_on": ("needs",),
    "dependencies": ("needs",),
    "requires": ("needs",),
    "after": ("needs",),
    "jobs": ("steps",),
    "services": ("steps",),
    "tasks": ("steps",),
    "stages": ("steps",),
    "nodes": ("steps",),
    "do": ("steps",),
    "action": ("do",),
    "if": ("when",),
    "condition": ("when",),
    "continue_on_error": ("optional",),
    "allow_failure": ("optional",),
    "max_parallel": ("concurrency",),
    "parallelism": ("concurrency",),
    "uses": ("agent",),
    "assignee": ("agent",),
    "with": ("inputs",),
    "artifacts": ("outputs",),
    "produces": ("outputs",),
    "retries": ("retry",),
    "attempts": ("retry",),
    "max_attempts": ("attempts", "retry.attempts"),
    # What an agent is and is told.
    "prompt": ("system_prompt", "task"),
    "instructions": ("system_prompt", "task"),
    "system": ("system_prompt",),
    "run": ("task",),
    "script": ("task",),
    "goal": ("task",),
    "llm": ("model",),
    "allowed_tools": ("tools",),
    "max_tokens": ("max_output_tokens",),
    "working_directory": ("working_dir",),
    "workdir": ("working_dir",),
    "cwd": ("working_dir",),
    "environment": ("env",),
    "env_file": ("env",),
    "env_vars": ("env",),
    # How long, how much, how often.
    "timeout": ("timeout_s", "budgets.seconds"),
    "timeout_minutes": ("timeout_s", "budgets.seconds"),
    "timeoutsec": ("timeout_s", "budgets.seconds"),
    "runtimemaxsec": ("budgets.seconds",),
    "max_turns": ("max_steps", "limits.max_steps"),
    "budget": ("budgets",),
    "cost_limit": ("usd", "budgets.usd"),
    "max_cost": ("usd", "budgets.usd"),
    "mem_limit": ("memory_bytes", "limits.memory_bytes", "caps.memory_bytes"),
    "memory": ("memory_bytes", "limits.memory_bytes", "caps.memory_bytes"),
    "memorymax": ("memory_bytes", "limits.memory_bytes", "caps.memory_bytes"),
    "pids_limit": ("pids", "limits.pids", "caps.pids"),
    "tasksmax": ("pids", "limits.pids", "caps.pids"),
    "cpus": ("cpu_weight", "limits.cpu_weight"),
    "cpu_shares": ("cpu_weight", "limits.cpu_weight"),
    # What happens when it dies.
    "restart_policy": ("restart",),
    "restartsec": ("base_s", "backoff.base_s", "restart.backoff.base_s"),
    "startlimitburst": ("max_restarts", "group.max_restarts"),
    "startlimitinterval": ("period_s", "group.period_s"),
    "startlimitintervalsec": ("period_s", "group.period_s"),
    "stop_grace_period": ("grace_s", "shutdown.grace_s", "restart.shutdown.grace_s", "sessions.stop_grace_s"),
    "timeoutstopsec": ("grace_s", "shutdown.grace_s", "restart.shutdown.grace_s", "sessions.stop_grace_s"),
}
"""Foreign name, in lower case and with underscores → ours, the first that there is. A dotted one is further down."""

ELSEWHERE: dict[str, str] = {
    "env": "name the variables under `env` of the agent's own file",
    "environment": "name the variables under `env` of the agent's own file",
    "restart": "say it in the agent's own file; a step is tried again with `retry`",
    "on": "nothing starts a workflow by itself: call `ottoctl workflow run` from cron, a timer or a hook",
    "schedule": "nothing starts a workflow by itself: call `ottoctl workflow run` from cron, a timer or a hook",
    "volumes": "grant directories with `isolation: {read_paths: [], write_paths: []}`",
    "image": "there are no images: name an agent, and what it may use under `tools`",
}
"""What has no name at all where it was written: what to do instead."""

VALUES: dict[str, tuple[str, ...]] = {
    "always": ("permanent",),
    "unless_stopped": ("permanent",),
    "on_failure": ("transient",),
    "on_abnormal": ("transient",),
    "on_abort": ("transient",),
    "no": ("temporary",),
    "never": ("temporary",),
    "dag": ("graph",),
    "concurrent": ("parallel",),
    "serial": ("sequential",),
    "repeat": ("loop",),
    "continue": ("wait_all",),
    "ignore": ("wait_all",),
    "confirm": ("ask",),
    "block": ("deny",),
    "permit": ("allow",),
}
"""The same for values of which there is a fixed choice."""

TOOLS: dict[str, tuple[str, ...]] = {
    "bash": ("shell",),
    "terminal": ("shell",),
    "exec": ("shell",),
    "execute_command": ("shell",),
    "read": ("fs_read",),
    "read_file": ("fs_read",),
    "write": ("fs_write",),
    "write_file": ("fs_write",),
    "edit": ("fs_edit",),
    "edit_file": ("fs_edit",),
    "multiedit": ("fs_edit",),
    "apply_patch": ("fs_edit",),
    "ls": ("fs_list",),
    "glob": ("fs_list",),
    "list_files": ("fs_list",),
    "search": ("grep",),
    "webfetch": ("http",),
    "web_fetch": ("http",),
    "fetch": ("http",),
    "task": ("spawn_agent",),
    "run_tests": ("test_runner",),
}
"""The same for tools."""


def own_word(word: str, known: Collection[str], table: Mapping[str, tuple[str, ...]]) -> str:
    """Our word for a foreign one, if it is one of those that are known; else an empty string."""
    return next((ours for ours in table.get(_plain(word), ()) if ours in known), "")


def own_key(key: str, struct: type[msgspec.Struct], fields: Collection[str]) -> str:
    """Our name for a foreign key of a mapping; dotted where it is further down. Else an empty string."""
    for ours in KEYS.get(_plain(key), ()):
        first, *rest = ours.split(".")
        if first in fields and _leads_on(struct, [first, *rest]):
            return ours
    return ""


def written(path: str) -> str:
    """How to write a key that is dotted: `limits: {pids: …}`."""
    first, *rest = path.split(".")
    inner = "…"
    for part in reversed(rest):
        inner = f"{{{part}: {inner}}}"
    return f"{first}: {inner}"


def elsewhere(key: str) -> str:
    """What to do about a key that has no place here; else an empty string."""
    return ELSEWHERE.get(_plain(key), "")


def _plain(word: str) -> str:
    return word.strip().lower().replace("-", "_")


def _leads_on(struct: type[msgspec.Struct], path: Iterable[str]) -> bool:
    """Whether a path of keys ends at something, from one struct into the next."""
    kind: Any = struct
    for part in path:
        found = msgspec.structs.fields(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else ()
        field = next((field for field in found if field.encode_name == part), None)
        if field is None:
            return False
        kind = field.type
    return True
