"""The built-in tools, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from ottod.errors import ConfigError
from ottod.tools.artifact_list import ARTIFACT_LIST
from ottod.tools.artifact_read import ARTIFACT_READ
from ottod.tools.artifact_write import ARTIFACT_WRITE
from ottod.tools.ask_agent import ASK_AGENT
from ottod.tools.await_agents import AWAIT_AGENTS
from ottod.tools.base import Tool
from ottod.tools.broadcast import BROADCAST
from ottod.tools.checkpoint import CHECKPOINT
from ottod.tools.data import DATA
from ottod.tools.decision_log import DECISION_LOG
from ottod.tools.decision_query import DECISION_QUERY
from ottod.tools.fs_edit import FS_EDIT
from ottod.tools.fs_list import FS_LIST
from ottod.tools.fs_read import FS_READ
from ottod.tools.fs_write import FS_WRITE
from ottod.tools.git import GIT
from ottod.tools.grep import GREP
from ottod.tools.handoff import HANDOFF
from ottod.tools.http import HTTP
from ottod.tools.list_agents import LIST_AGENTS
from ottod.tools.markdown import MARKDOWN
from ottod.tools.process_tools import PROCESS_TOOLS
from ottod.tools.send_message import SEND_MESSAGE
from ottod.tools.shell import SHELL
from ottod.tools.spawn_agent import SPAWN_AGENT
from ottod.tools.stop_agent import STOP_AGENT
from ottod.tools.test_runner import TEST_RUNNER

BUILTIN_TOOLS: tuple[Tool[Any], ...] = (
    FS_READ,
    FS_WRITE,
    FS_EDIT,
    FS_LIST,
    GREP,
    SHELL,
    TEST_RUNNER,
    DATA,
    MARKDOWN,
    GIT,
    HTTP,
    ARTIFACT_WRITE,
    ARTIFACT_READ,
    ARTIFACT_LIST,
    CHECKPOINT,
    DECISION_LOG,
    DECISION_QUERY,
    SPAWN_AGENT,
    HANDOFF,
    SEND_MESSAGE,
    BROADCAST,
    LIST_AGENTS,
    ASK_AGENT,
    AWAIT_AGENTS,
    STOP_AGENT,
    *PROCESS_TOOLS,
)


def tools_by_name(names: Iterable[str]) -> dict[str, Tool[Any]]:
    """The named tools, in the order given. Raises ConfigError for an unknown name, with the nearest known one."""
    known = {tool.name: tool for tool in BUILTIN_TOOLS}
    chosen: dict[str, Tool[Any]] = {}
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            mend = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(known)}"
            raise ConfigError(f"unknown tool {name!r}", mend=mend)
        chosen[name] = known[name]
    return chosen
