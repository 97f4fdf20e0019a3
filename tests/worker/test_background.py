"""Background processes: they live across calls and turns, and never longer than their session's process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ottod.isolation.processes import survivors
from ottod.protocol import journal as j
from ottod.protocol.events import ToolCompleted, ToolFailed, ToolStarted, TurnCompleted
from ottod.protocol.specs import Limits
from ottod.protocol.worker import DeliverInput, StopTurn
from tests.fakes.fake_root import FakeRoot

TOOLS = ("process_start", "process_logs", "process_list", "process_stop", "shell")
CLOCK = "i=0; while :; do echo tick $i; i=$((i+1)); [ $i = 4 ] && touch ticked; sleep 0.05; done"
PATIENT = "from ottod.tools import process_tools; process_tools.FIRST_LOOK_S = 6.0"
"""How soon a program has its first word, or its end, is the machine's affair."""


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"name": tool, "arguments": arguments}


def start(name: str, command: str) -> dict[str, Any]:
    return call("process_start", name=name, command=command)


def until_file(name: str, then: str = "") -> dict[str, Any]:
    """A call that ends when there is a file of that name."""
    return call("shell", command=f"while [ ! -e {name} ]; do sleep 0.02; done{then}")


def outputs(root: FakeRoot) -> list[str]:
    """What the calls gave, in the order of their ends."""
    return [entry.result.text for entry in root.journal() if isinstance(entry, j.ToolResolved)]


def test_a_process_lives_across_calls_and_turns(root: FakeRoot) -> None:
    """It is started once, read by a cursor in a later turn, listed, stopped, and then there is nothing of it."""
    root.script(
        {"tools": [start("clock", CLOCK)]},
        {"tools": [until_file("ticked")]},
        {"text": "first"},
        {"tools": [call("process_logs", name="clock", cursor=0)]},
        {"tools": [call("process_list")]},
        {"tools": [call("process_stop", name="clock")]},
        {"tools": [call("process_list")]},
        {"text": "second"},
    )
    root.prelude = PATIENT
    root.bear(*TOOLS, mode="conversation")
    root.until("the first turn", lambda: len(root.of(TurnCompleted)) == 1)
    assert root.command(DeliverInput(text="go on")) is None
    root.until("the second turn", lambda: len(root.of(TurnCompleted)) == 2)
    began, _, logs, listed, stopped, after = outputs(root)
    assert began.startswith("tick 0") and "clock is running; read on with process_logs from cursor" in began
    assert logs.startswith("tick 0\ntick 1\n") and "[clock is running; cursor " in logs
    assert listed == f"clock is running: {CLOCK}"
    assert stopped == "clock was stopped" and after.startswith("clock was stopped: ")
    root.command(StopTurn(reason="enough"))
    root.finish()
    assert [type(e).__name__ for e in root.journal() if isinstance(e, j.ProcessStarted | j.ProcessEnded)] == [
        "ProcessStarted",
        "ProcessEnded",
    ]


def test_an_end_is_told_with_its_output(root: FakeRoot) -> None:
    """One that ends at once fails the start, with what it said; one that is killed says by what."""
    root.script(
        {"tools": [start("bad", "echo no port >&2; exit 4"), start("odd", "kill -SEGV $BASHPID")]},
        {"tools": [start("never", "true"), start("bad", "sleep 300")]},
        {"tools": [call("process_logs", name="none")]},
        {"text": "done"},
    )
    root.prelude = PATIENT
    root.bear(*TOOLS)
    assert root.finish().cause.kind == "completed"
    said = outputs(root)
    assert any(text.startswith("no port\n[bad has ended with exit status 4") for text in said)
    assert any("odd was killed by signal 11" in text for text in said)
    assert any("bad is running" in text for text in said)
    (failed,) = [e for e in root.of(ToolFailed) if e.tool == "process_logs"]
    assert "no background process 'none'; there are: " in failed.failure.message


def test_there_are_bounds(root: FakeRoot) -> None:
    """A name is taken once, there are so many at a time, and a flood keeps its newest part and says what is gone."""
    root.script(
        {"tools": [start(f"p{i}", "sleep 300") for i in range(7)]},
        {
            "tools": [
                start("p0", "sleep 300"),
                start("flood", "yes word | head -c 3000000; echo; echo end; touch flooded; sleep 300"),
            ]
        },
        {"tools": [start("more", "sleep 300")]},
        {"tools": [until_file("flooded", then="; sleep 1")]},
        {"tools": [call("process_logs", name="flood", cursor=0)]},
        {"tools": [call("process_logs", name="flood")]},
        {"text": "done"},
    )
    root.bear(*TOOLS)
    assert root.finish().cause.kind == "completed"
    failures = [e.failure.message for e in root.of(ToolFailed)]
    assert any("p0 is running already" in text for text in failures)
    assert any("8 background processes are running" in text for text in failures)
    *_, first, newest = outputs(root)
    assert first.startswith("[27") and "bytes before this are gone]" in first
    assert newest.rstrip().split("\n")[-2] == "end"


def test_a_killed_worker_leaves_none_running(root: FakeRoot) -> None:
    """The processes die with it; the next incarnation lists them as lost, and can start them again."""
    root.script(
        {"tools": [start("web", "setsid sleep 300 & echo up; wait")]}, {"tools": [call("shell", command="sleep 300")]}
    )
    root.bear(*TOOLS)
    root.until("it runs", lambda: any(e.tool == "shell" for e in root.of(ToolStarted)))
    assert root.process is not None
    root.process.kill()
    # Nobody but the keepers ends them: this root looks on.
    give_up_at = time.monotonic() + 30
    while left := survivors(root.session):
        assert time.monotonic() < give_up_at, left
        time.sleep(0.02)
    root._bury()
    root.script(
        {"text": "unused"},
        {"text": "unused"},
        {"tools": [call("process_list")]},
        {"tools": [start("web", "echo up again; sleep 300")]},
        {"tools": [call("process_list")]},
        {"text": "done"},
    )
    root.bear(*TOOLS)
    assert root.finish().cause.kind == "completed"
    lost, again, listed = outputs(root)[-3:]
    assert lost.startswith("web is lost: it died with an earlier process of this session; start it again: setsid")
    assert again.startswith("up again") and listed.startswith("web is running")


@pytest.mark.parametrize("cause", ["cancelled", "daemon_stop"])
def test_a_stop_ends_them(root: FakeRoot, cause: str) -> None:
    """However a session is told to end, its last word comes when nothing of them is left."""
    root.script({"tools": [start("web", "trap '' TERM INT HUP; while :; do sleep 1; done")]}, {"text": "done"})
    root.bear(*TOOLS, mode="conversation")
    root.until("it runs", lambda: root.of(ToolCompleted))
    root.command(StopTurn(reason="enough", cause=cause))  # type: ignore[arg-type]
    root.until("the last word", lambda: root.last_word)
    assert root.process is not None and root.worker is not None
    left = [each for each in survivors(root.session) if each.pid != root.process.pid]
    assert left == []
    root.finish()


def test_no_half_of_a_secret_is_read(root: FakeRoot) -> None:
    """Output is read in pieces that end anywhere; a secret is a mark in one of them, and nothing in the others."""
    token = "printf 'ghp_%s' $(printf 'a1B2%.0s' 1 2 3 4 5 6 7 8 9)"
    root.script(
        {"tools": [start("talker", f"seq 1 100; {token}; echo; seq 101 200; touch talked; sleep 60")]},
        {"tools": [until_file("talked", then="; sleep 0.3")]},
        *({"tools": [call("process_logs", name="talker", cursor=at)]} for at in (0, 300, 310, 320)),
        {"text": "done"},
    )
    root.bear(*TOOLS, limits=Limits(max_tool_output_bytes=1024))
    root.until("the turn", lambda: len(root.of(TurnCompleted)) == 1)
    said = outputs(root)[2:]
    assert "\n100\n[redacted:github-token]\n101\n" in said[0]
    assert not any("a1B2" in text or "ghp_" in text for text in said)
    root.finish()
