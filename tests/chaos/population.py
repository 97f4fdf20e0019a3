"""The sessions of a run: kinds, what they do, and how they are supervised."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ottod.protocol.requests import StartSession
from ottod.protocol.specs import AgentSpec, Backoff, Group, Limits, Restart, Shutdown

MAX_RESTARTS = 4
PERIOD_S = 20.0
"""The daemon's allowance for sessions without a parent."""
GROUP_RESTARTS = 3
TOOL_TIMEOUT_S = 10.0
GRACE_S = 2.0
RATE_HZ = 20
BACKOFF = Backoff(base_s=0.1, factor=2, max_s=2, jitter=0.2)

_STREAM: dict[str, Any] = {"turns": [{"stream": {"events": 1_000_000, "rate_hz": RATE_HZ, "text_bytes": 60}}]}
_COUNT = "i=0; while [ $i -lt 10 ]; do echo line $i; i=$((i+1)); sleep 0.05; done"
_DEAF = "trap '' TERM INT HUP; (setsid sleep 3 &) ; sleep 1; echo deaf"


def _call(name: str, **arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


Policy = Literal["permanent", "transient", "temporary"]


class Kind(NamedTuple):
    """A kind of session. `share` is its weight when one is chosen."""

    script: dict[str, Any]
    share: int
    tools: tuple[str, ...] = ()
    mode: Literal["oneshot", "conversation"] = "oneshot"
    may_complete: bool = False
    crash_signal: str = ""
    children: int = 0
    policies: tuple[Policy, ...] = ("permanent", "transient", "temporary")


KINDS: dict[str, Kind] = {
    "stream": Kind(_STREAM, 8),
    "brief": Kind(
        {"turns": [{"stream": {"events": 100, "rate_hz": RATE_HZ, "text_bytes": 60}}]}, 3, may_complete=True
    ),
    "tools": Kind(
        {
            "loop": True,
            "turns": [
                {"text": "Counting.", "tools": [_call("shell", command=_COUNT), _call("fs_list", path=".")]},
                {
                    "text": "Writing.",
                    "tools": [_call("fs_write", path="note-${step}.txt", content="step ${step}")],
                    "delay_ms": 20,
                },
                {"tools": [_call("shell", command="sleep 2"), _call("shell", command="sleep 1; echo two")]},
            ],
        },
        7,
        tools=("shell", "fs_list", "fs_write"),
        may_complete=True,
    ),
    "deaf": Kind(
        {"loop": True, "turns": [{"text": "Deaf.", "tools": [_call("shell", command=_DEAF)]}]},
        2,
        tools=("shell",),
        may_complete=True,
    ),
    "talker": Kind(
        {"loop": True, "turns": [{"text": "I heard: ${input}", "delay_ms": 5}]},
        4,
        mode="conversation",
        policies=("permanent", "transient"),
    ),
    "crasher": Kind(
        {"turns": [{"text": "This will not end well, as everybody can see.", "crash": "SIGSEGV", "after_chunks": 1}]},
        2,
        crash_signal="SIGSEGV",
    ),
    "parent": Kind(_STREAM, 4, children=3),
    "child": Kind(_STREAM, 0),
    "spawner": Kind(
        {
            "loop": True,
            "turns": [
                {"tools": [_call("spawn_agent", agent="leaf", task="count"), _call("shell", command="sleep 1")]},
                {"text": "Again."},
            ],
        },
        2,
        tools=("spawn_agent", "shell"),
        may_complete=True,
    ),
    "leaf": Kind({"turns": [{"stream": {"events": 60, "rate_hz": RATE_HZ, "text_bytes": 60}}]}, 0, may_complete=True),
}
"""By the name of its agent. Loops end when their turn has had all the steps that it may have."""


def write_scripts(workdir: Path, agents_dir: Path) -> None:
    """The models of all kinds, and the one agent that sessions start by name."""
    for name, kind in KINDS.items():
        (workdir / f"{name}.script.yml").write_text(yaml.safe_dump(kind.script))
    agents_dir.mkdir(parents=True, exist_ok=True)
    leaf = {"name": "leaf", "model": f"scripted:{workdir}/leaf.script.yml", "restart": {"policy": "transient"}}
    (agents_dir / "leaf.yml").write_text(yaml.safe_dump(leaf))


class Guest(NamedTuple):
    """A session to be: its request, and how many children it is to get."""

    request: StartSession
    children: int


class Population:
    """Decides who comes next. The same seed gives the same guests in the same order."""

    def __init__(self, random_: random.Random, workdir: Path, seed: int) -> None:
        self._random = random_
        self._workdir = workdir
        self._seed = seed
        self._number = 0

    def top(self) -> Guest:
        """A session without a parent."""
        names = [name for name, kind in KINDS.items() if kind.share]
        name = self._random.choices(names, [KINDS[each].share for each in names])[0]
        return self._guest(name, "")

    def child(self, parent: str) -> Guest:
        """A child of a session."""
        return self._guest("child", parent)

    def _guest(self, name: str, parent: str) -> Guest:
        kind, choose = KINDS[name], self._random
        self._number += 1
        restart = Restart(
            policy=choose.choice(kind.policies),
            backoff=BACKOFF,
            shutdown=Shutdown(grace_s=GRACE_S),
            on_parent_exit=choose.choice(("stop", "stop", "keep")) if parent else "stop",
            significant=bool(parent) and choose.random() < 0.2,
        )
        group = Group(
            strategy=choose.choice(("one_for_one", "one_for_all", "rest_for_one")),
            max_restarts=GROUP_RESTARTS,
            period_s=PERIOD_S,
            auto_shutdown=choose.choice(("never", "never", "any_significant")),
        )
        spec = AgentSpec(
            name=name,
            model=f"scripted:{self._workdir}/{name}.script.yml",
            tools=kind.tools,
            restart=restart if not (restart.significant and restart.policy == "permanent") else _ordinary(restart),
            group=group,
            limits=Limits(max_steps=1_000, tool_timeout_s=TOOL_TIMEOUT_S),
        )
        key = f"chaos-{self._seed}-{self._number}"
        request = StartSession(
            spec=spec,
            task=f"be a {name}",
            cwd=str(self._workdir),
            env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
            title=key,
            key=key,
            parent=parent,
            mode=kind.mode,
        )
        return Guest(request, choose.randint(1, kind.children) if kind.children else 0)


def _ordinary(restart: Restart) -> Restart:
    """A permanent child cannot be significant, as in OTP: it never ends by itself."""
    return Restart(policy=restart.policy, backoff=restart.backoff, shutdown=restart.shutdown)
