"""The states of a session: a diagram and tables from the transition table."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from ottod.core import lifecycle
from ottod.core.lifecycle import HAPPENINGS, LIVE, STATES, TRANSITIONS
from pages.common import NOTICE

STATE_MEANINGS = {
    "starting": "The session exists; its process does not serve yet.",
    "idle": "It waits for input.",
    "running": "A turn is under way: the model answers or tools run.",
    "waiting_approval": "The turn stands still until somebody allows or denies a tool call.",
    "waiting_input": "The turn stands still until somebody answers the agent's question.",
    "waiting_children": "The turn stands still until sessions that it started have ended.",
    "paused": "It begins nothing new until it is told to go on.",
    "stopping": "It was told to end and is on its way.",
    "restarting": "Its process is lost and another will be started.",
    "parked": "It was restarted too often and stays where it is until somebody lets it go on.",
    "ended": "It is over, once and for all.",
}


def states_page() -> str:
    """Every state, what may follow it, and the diagram."""
    if set(STATE_MEANINGS) != set(STATES):
        raise SystemExit("docs/generate.py: STATE_MEANINGS and the states differ")
    common = _common()
    rules = "".join(f"- `{what}` leads from {_from(what)} to `{target}`.\n" for what, target in common.items())
    rows = "".join(f"| `{state}` | {STATE_MEANINGS[state]} | {_followers(state, common)} |\n" for state in STATES)
    return f"""{NOTICE}
# Session states

{inspect.getdoc(lifecycle)}

Which of the states a session of this version can be in is said under
[limits](../explanation/limits.md#supervision).

```mermaid
stateDiagram-v2
{_diagram(common)}```

Not drawn, because nearly every state has them:

{rules}
| state | meaning | what can happen, and where it leads |
|---|---|---|
{rows}"""


def _common() -> dict[str, str]:
    """What leads from most live states to one and the same: drawn, it would hide everything else."""
    found = {}
    for what in HAPPENINGS:
        targets = [TRANSITIONS[state, what] for state in LIVE if (state, what) in TRANSITIONS]
        if len(targets) > len(LIVE) / 2 and len(set(targets)) == 1:
            found[what] = targets[0]
    return found


def _from(what: str) -> str:
    missing = [state for state in STATES if state in LIVE and (state, what) not in TRANSITIONS]
    return "every live state" + (f" but {_names(missing)}" if missing else "")


def _diagram(common: dict[str, str]) -> str:
    lines = ["    [*] --> starting\n"]
    for (state, what), target in TRANSITIONS.items():
        if what not in common:
            lines.append(f"    {state} --> {target}: {what}\n")
    lines.append("    ended --> [*]\n")
    return "".join(lines)


def _followers(state: str, common: dict[str, str]) -> str:
    own = [(what, target) for (before, what), target in TRANSITIONS.items() if before == state and what not in common]
    shown = [f"`{what}` → `{target}`" for what, target in own]
    return "<br>".join(shown) or ("nothing" if state not in LIVE else "only what is common to all")


def _names(states: Iterable[str]) -> str:
    names = [f"`{state}`" for state in states]
    return ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]
