"""Sessions that have ended go on as others, forks begin where they are told, and journals can be read."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from ottoctl.sync import SyncSession
from ottod.core.resume import UNKNOWN, restore
from ottod.core.turn import is_valid_conversation
from ottod.errors import OttoError
from ottod.protocol import journal as j
from ottod.protocol.model import UserMessage
from ottod.protocol.specs import Budgets
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.test_steering import ottoctl, runs, waiting_call


def heard(entries: list[j.JournalEntry]) -> list[str]:
    """What the model has been told, by whoever."""
    messages = restore(entries).messages
    assert is_valid_conversation(messages)
    return [m.text for m in messages if isinstance(m, UserMessage)]


def test_a_crashed_session_goes_on_as_another(daemon: RealDaemon) -> None:
    """Its worker killed in a tool call, for good: resumed, the turn goes on, and the call is not made again."""
    model = daemon.script(
        "r",
        {"text": "look", "tools": [waiting_call("never")]},
        {"text": "I heard: ${last_tool_result}"},
        {"text": "again: ${input}"},
    )
    with daemon.client() as otto:
        first = otto.start(spec=daemon.agent(model, "shell"), task="go", cwd=daemon.workdir, title="a title")
        runs(daemon, "never")
        os.kill(first.info().pid, signal.SIGKILL)
        assert str(first.wait().cause) == "crashed(SIGKILL)"
        second = otto.session(ottoctl(daemon, "resume", first.id).strip())
        result = second.wait()
        info = second.info()
        assert result.result == f"I heard: {UNKNOWN}" and second.id != first.id
        assert (info.resumed_from, info.resumed_turn, info.title, info.turn) == (first.id, 1, "a title", 1)
        assert info.usage.calls == 1, "what the first one paid for is not its cost"
        with pytest.raises(OttoError) as caught:
            second.resume()
        assert caught.value.code == "nothing_to_resume" and "resume" in caught.value.mend
        third = second.resume("more")
        assert third.wait().result == "again: more"
        assert third.info().turn == 2 and heard(third.journal()) == ["go", "more"]


def test_forks_and_rollbacks(daemon: RealDaemon) -> None:
    """A conversation is forked at a turn and at a checkpoint, and forgets turns; the first one's past stays whole."""
    model = daemon.script("f", *({"text": f"{n}: ${{input}}"} for n in range(1, 9)))
    with daemon.client() as otto:
        first = otto.start(spec=daemon.agent(model), task="one", cwd=daemon.workdir, mode="conversation")
        first.wait(idle=True)
        ottoctl(daemon, "session", "checkpoint", first.id, "early")
        for turn, text in ((2, "two"), (3, "three")):
            first.send(text)
            # What is said is in the journal a moment before the session is seen to work at it.
            wait_for(text, lambda n=turn: first.info().turn == n and first.info().state == "idle")
        fork = otto.session(ottoctl(daemon, "fork", first.id, "--at", "2", "other").strip())
        assert fork.info().mode == "conversation"
        wait_for("its turn", lambda: fork.info().turn == 3 and fork.info().state == "idle")
        assert heard(fork.journal()) == ["one", "two", "other"]
        named = first.fork(checkpoint="early")
        wait_for("it waits", lambda: named.info().state == "idle")
        assert heard(named.journal()) == ["one"]
        ottoctl(daemon, "rollback", first.id, "--turns", "2")
        first.send("anew")
        wait_for("anew", lambda: first.info().turn == 4 and first.info().state == "idle")
        assert heard(first.journal()) == ["one", "anew"]
        for turn, code in ((9, "no_such_turn"), (3, "")):
            if code:
                with pytest.raises(OttoError) as caught:
                    first.fork(turn=turn)
                assert caught.value.code == code
            else:
                assert first.fork(turn=turn).info().resumed_turn == 3
        with pytest.raises(OttoError) as caught:
            first.rollback(7)
        assert caught.value.code == "no_such_turn"
        assert caught.value.message == f"{first.id} has 2 turns: 7 cannot be forgotten"
        assert f"ottoctl rollback {first.id} --turns 2" in caught.value.mend


def test_a_journal_is_compressed_and_read(daemon: RealDaemon) -> None:
    """The journal of an ended session is compressed after its end; export, fork and resume read it all the same."""
    model = daemon.script("long", {"text": "word " * 6000}, {"text": "short"})
    with daemon.client() as otto:
        session = otto.start(spec=daemon.agent(model), task="go ```on``` #1", cwd=daemon.workdir)
        assert session.wait().ok
        path = Path(session.info().journal)
        wait_for("it is compressed", lambda: not path.exists() and path.with_name("journal.zst").exists())
        assert path.with_name("journal.zst").stat().st_size < 4000
        page = ottoctl(daemon, "export", session.id)
        assert page.startswith("# go ```on``` #1") and "## Turn 1" in page and "word word" in page
        whole = json.loads(ottoctl(daemon, "export", session.id, "-o", "json"))
        assert whole["session"]["session"] == session.id
        assert [e["type"] for e in whole["entries"]][-1] == "session.closed"
        lines = ottoctl(daemon, "export", session.id, "-o", "jsonl").splitlines()
        assert [json.loads(line)["type"] for line in lines] == [e["type"] for e in whole["entries"]]
        assert session.resume("more").wait().result == "short"


def test_what_was_spent_is_spent_for_whoever_goes_on(daemon: RealDaemon) -> None:
    """Resumed, a session has what its budget has left, over restarts of root too; more must be asked for by name."""
    big = {"text": "said ${input}", "usage": {"input_tokens": 1, "output_tokens": 1000}}
    model = daemon.script("m", *([big] * 3), {"text": "in short"}, *([big] * 3))
    spec = daemon.agent(model, budgets=Budgets(tokens=3700, seconds=3000), max_output_tokens=2000)

    def line(session: SyncSession, unit: str = "tokens") -> tuple[int, int]:
        (found,) = [b for b in session.info().budgets if b.budget == unit and b.session == session.id]
        return found.spent, found.limit

    with daemon.client() as otto:
        first = otto.start(spec=spec, task="one", cwd=daemon.workdir)
        assert first.wait().ok and line(first) == (1001, 3700)
        second = first.resume("two")
        assert second.wait().ok and line(second) == (2002, 3700)
        assert second.info().usage.total_tokens == 1001
        waiting = second.resume(mode="conversation")
        assert line(waiting) == (2002, 3700)
        wait_for("it waits", lambda: waiting.info().state == "idle")
    daemon.kill()
    daemon.start()
    with daemon.client() as otto:
        third = otto.session(waiting.id)
        third.stop()
        assert line(third) == (2002, 3700)
        fork = third.fork("three", mode="oneshot")
        assert fork.wait().ok and line(fork) == (1001, 3700)
        last = third.resume("more", mode="oneshot")
        while last.wait().ok:
            last = last.resume("more " * 30)
        cause = last.info().cause
        assert cause is not None and cause.kind == "budget" and 3003 < line(last)[0] <= 3700
        with pytest.raises(OttoError) as caught:
            last.resume("and more")
        assert caught.value.code == "budget" and "--fresh-budget" in caught.value.mend
        fresh = otto.session(ottoctl(daemon, "resume", "--fresh-budget", last.id, "and more").strip())
        assert fresh.wait().ok and line(fresh) == (1001, 3700)
        stays = otto.start(spec=spec, task="one", cwd=daemon.workdir, mode="conversation")
        wait_for("it waits", lambda: stays.info().state == "idle")
        with pytest.raises(OttoError) as caught:
            stays.resume("two", fresh_budget=True)
        assert caught.value.code == "session_live"
        stays.kill()
