"""Names that settings must know without importing what bears them."""

from __future__ import annotations

BUILTIN_TOOL_NAMES = (
    "fs_read",
    "fs_write",
    "fs_edit",
    "fs_list",
    "grep",
    "shell",
    "test_runner",
    "data",
    "markdown",
    "git",
    "http",
    "artifact_write",
    "artifact_read",
    "artifact_list",
    "checkpoint",
    "decision_log",
    "decision_query",
    "spawn_agent",
    "handoff",
    "send_message",
    "broadcast",
    "list_agents",
    "ask_agent",
    "await_agents",
    "stop_agent",
    "process_start",
    "process_logs",
    "process_list",
    "process_stop",
)
"""The built-in tools. `tests/settings` compares them with the registry."""

FILE_TOOLS = ("fs_write", "fs_edit", "data", "markdown")
"""Those that change files and do nothing else: what they would change can be shown before it is."""

AGENT_SUFFIXES = (".yml", ".yaml", ".md")
"""The endings of agent files."""
