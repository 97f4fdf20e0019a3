"""What is said of a call that could not be made at all: a tool that there is not, arguments that it has not."""

from __future__ import annotations

import pytest

from ottoctl.rendering.policy import explanation_page
from ottod.errors import OttoError
from ottod.protocol.policy import Hypothesis
from ottod.protocol.specs import AgentSpec, PermissionRule, Permissions
from ottod.root.explanations import check_tool
from ottod.root.rulings import all_authorities
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.settings.sections import DaemonSettings
from ottod.worker.explain import explain

FORBIDS = Permissions(rules=(PermissionRule(effect="deny", tool="shell"),))
HELPER = AgentSpec(name="helper", model="m", tools=("shell", "fs_read"), permissions=FORBIDS)

WRONG = [
    ("shell", '{"cmd": "ls"}', "shell has no argument 'cmd'; it needs 'command'"),
    ("shell", "{}", "shell needs 'command'"),
    ("shell", '{"command": "ls", "shel": 1}', "shell has no argument 'shel'"),
    ("shell", '{"command": ["ls"]}', "shell: Expected `str`, got `array` - at `$.command`"),
    ("fs_write", '{"path": "x"}', "helper has no tool fs_write"),
]


@pytest.mark.parametrize(("tool", "arguments", "said"), WRONG)
def test_wrong_arguments_come_first(tool: str, arguments: str, said: str) -> None:
    """Before any rule, also one that forbids the tool; and nothing is said of what the call would do."""
    authorities = all_authorities(HELPER, DaemonSettings().permissions, cwd="/w", private_dirs=(), inherited=())
    found = explain(Hypothesis(spec=HELPER, authorities=authorities, tool=tool, arguments=arguments, cwd="/w"))
    assert found.outcome == "fails" and found.message.startswith(said)
    assert (found.claim, found.rule.rule, found.rulings, found.layers) == ("", "", (), ())
    page = explanation_page(found, color=False)
    assert page.startswith(f"helper {tool}: it fails: {said}") and "decided by" not in page and "about" not in page
    assert f"{tool} has: " in page


def test_a_right_call_is_weighed() -> None:
    """As before."""
    authorities = all_authorities(HELPER, DaemonSettings().permissions, cwd="/w", private_dirs=(), inherited=())
    order = Hypothesis(spec=HELPER, authorities=authorities, tool="shell", arguments='{"command": "ls"}', cwd="/w")
    found = explain(order)
    assert found.message == "a rule forbids it" and found.claim and found.rule.rule == "deny tool: shell"


def test_a_tool_that_there_is_not() -> None:
    """Names the nearest and what the agent has; of a server's tools nobody knows before it runs."""
    with pytest.raises(OttoError, match="unknown tool 'shel' — did you mean 'shell'") as caught:
        check_tool("shel", HELPER, BUILTIN_TOOL_NAMES)
    assert (caught.value.mend, caught.value.code) == ("helper has: shell, fs_read", "unknown_tool")
    with pytest.raises(OttoError, match="'project__chekc' — did you mean 'project__check'"):
        check_tool("project__chekc", HELPER, (*BUILTIN_TOOL_NAMES, "project__check"))
    for tool in ("shell", "fs_write", "github__search"):
        check_tool(tool, HELPER, BUILTIN_TOOL_NAMES)
