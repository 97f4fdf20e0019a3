"""Permissions through a whole daemon: rules of every origin, leave that stands, explanations and the audit trail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import RefusedError
from ottod.protocol.events import ApprovalRequested, PolicyDecided, ToolFailed
from ottod.protocol.results import AuditEntry, PendingApproval
from ottod.protocol.specs import PermissionRule, Permissions
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

Rule = PermissionRule


def rules(*given: PermissionRule, preset: str = "balanced") -> Permissions:
    return Permissions(rules=given, preset=preset)  # type: ignore[arg-type]


ASK_MARK = rules(Rule(effect="ask", tool="shell", command="./mark*", reason="it leaves a mark"))


def call(name: str, **arguments: object) -> dict[str, object]:
    return {"tools": [{"name": name, "arguments": arguments}]}


def start(
    daemon: RealDaemon, otto: SyncOtto, *turns: dict[str, object], tools: str = "shell", **fields: object
) -> SyncSession:
    """A session that makes these calls and says what came of the last one."""
    headless, parent = bool(fields.pop("headless", False)), str(fields.pop("parent", ""))
    model = daemon.script("policy", *turns, {"text": "heard: ${last_tool_result}"})
    spec = daemon.agent(model, *tools.split(), **fields)
    return otto.start(spec=spec, task="go", cwd=daemon.workdir, headless=headless, parent=parent)


def waiting(session: SyncSession) -> PendingApproval:
    info = wait_for("it waits", lambda: i if (i := session.info()).state == "waiting_approval" else None)
    (approval,) = info.approvals
    return approval


def heard(session: SyncSession) -> str:
    return session.wait(timeout_s=60).result


def trail(otto: SyncOtto, session: SyncSession) -> list[tuple[str, str]]:
    """What is on record of a session: kind, and what decided."""
    return [(e.kind, e.decision or e.rule) for e in otto.audit(session=session.id)]


def ctl(daemon: RealDaemon, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments],
        env=daemon.env, cwd=cwd or daemon.workdir, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def mark(daemon: RealDaemon) -> None:
    """A program that leaves a mark."""
    file = daemon.workdir / "mark"
    file.write_text("#!/bin/sh\necho made >> marks\n")
    file.chmod(0o755)


def marks(daemon: RealDaemon) -> int:
    file = daemon.workdir / "marks"
    return file.read_text().count("made") if file.exists() else 0


def test_rules_of_paths_and_commands_hold(daemon: RealDaemon) -> None:
    """What is denied does not happen, what is asked about says what for; what is neither goes on at once."""
    (daemon.workdir / "secrets").mkdir()
    (daemon.workdir / "secrets/key").write_text("the key\n")
    (daemon.workdir / "public").symlink_to("secrets")
    given = rules(
        Rule(effect="deny", path="secrets/**", reason="keys are not for agents"),
        Rule(effect="ask", tool="shell", command="git push*"),
    )
    with daemon.client() as otto:
        for path in ("secrets/key", "public/key", "./secrets//key", f"{daemon.workdir}/secrets/key"):
            session = start(daemon, otto, call("fs_read", path=path), tools="fs_read", permissions=given)
            assert "a rule forbids fs_read: keys are not for agents" in heard(session)
        for line in ("cat secrets/key", "cat public/key", "cd secrets; cat key; cat secrets/key", "cat sec*/key"):
            assert "a rule forbids" in heard(start(daemon, otto, call("shell", command=line), permissions=given))
        plain = start(daemon, otto, call("shell", command="git --version && echo fine"), permissions=given)
        assert "fine" in heard(plain) and trail(otto, plain) == []
        asking = start(daemon, otto, call("shell", command="cd . && git push origin main"), permissions=given)
        approval = waiting(asking)
        assert approval.claims == ("exec git push origin main",) and not approval.is_grantable
        assert approval.claims[0] in ctl(daemon, "approvals").stdout
        otto.deny(approval.approval, reason="no")
        assert "denied by python" in heard(asking)
        assert trail(otto, asking) == [("asked", ""), ("answered", "denied")]


def test_a_path_that_leads_elsewhere_by_now_is_not_used(daemon: RealDaemon) -> None:
    """Leave was given for a file; while somebody thought about it, it became a symlink to another, which the diff
    that was shown would fit as well."""
    (daemon.workdir / "notes").write_text("the same\n")
    (daemon.workdir / "important").write_text("the same\n")
    with daemon.client() as otto:
        session = start(
            daemon, otto, call("fs_write", path="notes", content="x\n"), tools="fs_write",
            permissions=rules(preset="strict"),
        )  # fmt: skip
        approval = waiting(session)
        assert approval.claims == ("write notes",)
        (daemon.workdir / "notes").unlink()
        (daemon.workdir / "notes").symlink_to("important")
        otto.approve(approval.approval)
        assert "permission was given for another file" in heard(session)
    assert (daemon.workdir / "important").read_text() == "the same\n"


@pytest.mark.parametrize("headless", [False, True])
def test_a_child_can_do_nothing_that_its_parent_may_not(daemon: RealDaemon, headless: bool) -> None:
    """Denied by the parent's rules, asked by its preset; and at once a failure where nobody can be asked."""
    gate = call("shell", command="while [ ! -e on ]; do sleep 0.05; done")
    above = rules(Rule(effect="deny", command="./mark*", reason="not below me"), Rule(effect="ask", path="out"))
    mark(daemon)
    with daemon.client() as otto:
        top = start(daemon, otto, gate, permissions=above, headless=headless)
        wait_for("it runs", lambda: top.info().current_tool == "shell")
        wide = rules(Rule(effect="allow"), preset="autonomous")
        child = start(daemon, otto, call("shell", command="./mark"), permissions=wide, parent=top.id)
        assert "not below me" in heard(child) and marks(daemon) == 0
        (decided,) = [e.event for e in child.events(follow=False) if isinstance(e.event, PolicyDecided)]
        assert decided.outcome == "denied" and decided.rule == "deny command: ./mark*"
        asking = start(daemon, otto, call("shell", command="echo x > out"), permissions=wide, parent=top.id)
        if headless:
            began_s = time.monotonic()
            assert "nobody can give it" in heard(asking)
            assert trail(otto, asking)[0][0] == "unavailable" and time.monotonic() - began_s < 60
            assert not [e for e in asking.events(follow=False) if isinstance(e.event, ApprovalRequested)]
        else:
            assert waiting(asking).claims == ("write out",)
            found = otto.explain("", "shell", {"command": "echo x > out"}, session=asking.id)
            assert (found.effect, found.outcome) == ("ask", "waits") and top.id in found.authority
            otto.approve(asking.info().approvals[0].approval)
            assert "heard" in heard(asking) and (daemon.workdir / "out").exists()
        (daemon.workdir / "on").touch()
        assert top.wait(timeout_s=60).ok


def test_the_users_rules_bind_all_agents_and_a_project_only_narrows() -> None:
    """Rules of otto.yml hold for every agent; a project's agent restricts, and its allow rules lift nothing."""
    settings = {"permissions": {"rules": [{"effect": "deny", "command": "./mark*", "reason": "the user says so"}]}}
    with running_daemon(settings) as daemon, daemon.client() as otto:
        mark(daemon)
        model = daemon.script("policy", call("shell", command="./mark"), {"text": "heard: ${last_tool_result}"})
        agents = daemon.workdir / ".otto/agents"
        agents.mkdir(parents=True)
        (agents / "wide.yml").write_text(
            f"model: {model}\ntools: [shell]\npermissions:\n  preset: autonomous\n  rules:\n"
            "    - {effect: allow, tool: shell, command: ./mark}\n    - {effect: deny, path: x}\n"
        )
        result = otto.run("wide", "go", cwd=daemon.workdir)
        assert "the user says so" in result.result and marks(daemon) == 0
        found = otto.explain("wide", "shell", {"command": "./mark"}, cwd=daemon.workdir)
        assert (found.effect, found.outcome, found.rule.reason) == ("deny", "fails", "the user says so")
        assert found.rule.source.endswith("otto.yml:1") or ":" in found.rule.source
        found = otto.explain("wide", "shell", {"command": "cat x"}, cwd=daemon.workdir)
        assert (found.effect, found.authority) == ("deny", "project") and "wide.yml:7" in found.rule.source


def test_nothing_lifts_hard_denies(daemon: RealDaemon) -> None:
    """Policy and hooks cannot be written, whatever an agent's own rules allow; the layer that says so is named."""
    wide = rules(Rule(effect="allow"), preset="autonomous")
    with daemon.client() as otto:
        for path in (".otto/agents/evil.yml", ".git/hooks/pre-commit", "sub/.GIT/config"):
            session = start(
                daemon, otto, call("fs_write", path=path, content="x"), tools="fs_write", permissions=wide
            )
            assert "run or obeyed outside of the sandbox" in heard(session)
            (entry,) = otto.audit(session=session.id)
            assert (entry.kind, entry.rule.split(",")[0], entry.source) == (
                "denied",
                "deny permission: write",
                "built in",
            )
    assert not (daemon.workdir / ".otto").exists() and not (daemon.workdir / ".git").exists()


# ---------------------------------------------------------------- leave that stands


def test_leave_for_an_agent_stands_until_it_is_revoked(daemon: RealDaemon) -> None:
    """Exactly this, in this directory: later sessions are not asked; it outlives root and can be ended."""
    mark(daemon)
    with daemon.client() as otto:
        first = start(daemon, otto, call("shell", command="./mark one"), permissions=ASK_MARK)
        beside = start(daemon, otto, call("shell", command="./mark one"), permissions=ASK_MARK)
        approval = waiting(first).approval
        waiting(beside)
        done = ctl(daemon, "approve", "--agent", "--for", "8h", "--reason", "it is harmless", approval)
        assert done.returncode == 0 and "stands as g-" in done.stderr, done.stderr
        # What waits elsewhere for exactly the same goes on too.
        assert "heard" in heard(first) + heard(beside) and marks(daemon) == 2
        (grant,) = otto.grants(agent="tester")
        assert grant.claims == ("exec ./mark one",) and grant.by.startswith("ottoctl") and grant.expires_at_ns
        assert grant.grant[:6] in ctl(daemon, "policy", "grants").stdout
        covered = start(daemon, otto, call("shell", command="./mark one"), permissions=ASK_MARK)
        assert "heard" in heard(covered) and trail(otto, covered) == [
            ("granted", "ask tool: shell, command: ./mark*")
        ]
        headless = start(daemon, otto, call("shell", command="./mark one"), permissions=ASK_MARK, headless=True)
        assert "heard" in heard(headless) and marks(daemon) == 4
        other = start(daemon, otto, call("shell", command="./mark two"), permissions=ASK_MARK)
        otto.deny(waiting(other).approval)
        assert "denied" in heard(other)
    daemon.kill()
    daemon.start()
    with daemon.client() as otto:
        assert [g.grant for g in otto.grants()] == [grant.grant]
        again = start(daemon, otto, call("shell", command="./mark one"), permissions=ASK_MARK)
        assert "heard" in heard(again) and marks(daemon) == 5
        done = ctl(daemon, "policy", "revoke", grant.grant[2:7])
        assert (done.returncode, done.stdout) == (0, f"{grant.grant}\n") and otto.grants() == ()
        with pytest.raises(RefusedError, match="no grant"):
            otto.revoke(grant.grant)
        asked = start(daemon, otto, call("shell", command="./mark one"), permissions=ASK_MARK)
        otto.deny(waiting(asked).approval)
        assert "denied" in heard(asked)
        kinds = [e.kind for e in otto.audit() if e.grant == grant.grant]
        assert kinds[0] == "standing" and kinds[-1] == "revoked" and set(kinds[1:-1]) == {"granted"}
        assert "it is harmless" in ctl(daemon, "policy", "audit", "-o", "jsonl").stdout


def test_leave_that_cannot_be_said_exactly_does_not_stand(daemon: RealDaemon) -> None:
    """The answer is refused with what to do instead, and the question stays open."""
    with daemon.client() as otto:
        session = start(daemon, otto, call("shell", command="./mark $X"), permissions=ASK_MARK)
        approval = waiting(session)
        assert not approval.is_grantable
        for answer in (lambda: otto.approve(approval.approval, scope="agent"),):
            with pytest.raises(RefusedError, match="cannot be said exactly") as caught:
                answer()
            assert caught.value.code == "bad_scope"
        assert waiting(session) == approval
        session.kill()


def test_a_revoked_grant_is_gone_for_running_sessions(daemon: RealDaemon) -> None:
    """A session that was born with it asks again once it is revoked."""
    mark(daemon)
    gate = call("shell", command="while [ ! -e on ]; do sleep 0.05; done")
    with daemon.client() as otto:
        first = start(daemon, otto, call("shell", command="./mark"), permissions=ASK_MARK)
        grant = otto.approve(waiting(first).approval, scope="agent").grant
        assert "heard" in heard(first)
        running = start(daemon, otto, gate, call("shell", command="./mark"), permissions=ASK_MARK)
        wait_for("it runs", lambda: running.info().current_tool == "shell")
        otto.revoke(grant)
        (daemon.workdir / "on").touch()
        otto.deny(waiting(running).approval)
        assert "denied" in heard(running) and marks(daemon) == 1


# ---------------------------------------------------------------- the record, and explanations


def test_the_audit_trail_survives_root_and_is_bounded() -> None:
    """Every denial is on record once, over a killed root; the oldest go when there are too many."""
    with running_daemon({"permissions": {"audit_entries": 100}}) as daemon:
        deny = rules(Rule(effect="deny", tool="shell", reason="no"))
        calls = [{"tools": [{"name": "shell", "arguments": {"command": f"echo {n}"}} for n in range(8)]}]
        with daemon.client() as otto:
            session = start(daemon, otto, *calls, permissions=deny)
            assert "a rule forbids" in heard(session)
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            entries = otto.audit(session=session.id)
            assert len(entries) == 8 and len({e.seq for e in entries}) == 8
            assert all((e.kind, e.agent, e.tool, e.reason) == ("denied", "tester", "shell", "no") for e in entries)
            assert {e.claims for e in entries} == {(f"exec echo {n}",) for n in range(8)}
            for _ in range(15):
                assert "forbids" in heard(start(daemon, otto, *calls, permissions=deny))
            assert len(otto.audit(limit=10_000)) == 100
            listed = [
                json.loads(line)
                for line in ctl(daemon, "policy", "audit", "-n", "3", "-o", "jsonl").stdout.splitlines()
            ]
            assert [entry["kind"] for entry in listed] == ["denied"] * 3
            assert "deny tool: shell" in ctl(daemon, "policy", "audit", "-n", "1").stdout


def test_a_time_out_is_on_record_as_one(daemon: RealDaemon) -> None:
    """Nobody has denied anything."""
    soon = rules(Rule(effect="ask", tool="shell", expires_s=1.0))
    with daemon.client() as otto:
        session = start(daemon, otto, call("shell", command="echo x"), permissions=soon)
        assert "nobody answered in time" in heard(session)
        (failed,) = [e.event for e in session.events(follow=False) if isinstance(e.event, ToolFailed)]
        assert failed.failure.code == "expired"
        assert trail(otto, session) == [("asked", ""), ("answered", "expired")]


def test_policy_explain(daemon: RealDaemon) -> None:
    """Which rule decides, from where, what the others say, what else would stop it; as text and as JSON."""
    agents = daemon.workdir / ".otto/agents"
    agents.mkdir(parents=True)
    model = daemon.script("policy", {"text": "hi"})
    (agents / "careful.yml").write_text(
        f"model: {model}\ntools: [shell, fs_write]\npermissions:\n  rules:\n"
        "    - {effect: ask, tool: shell}\n"
        "    - {effect: deny, tool: shell, command: git push*, reason: not from here}\n"
    )
    done = ctl(daemon, "policy", "explain", "careful", "shell", '{"command": "ls && git push > /etc/x"}')
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == "careful shell: it fails: a rule forbids it"
    text = "\n".join(rest)
    assert "deny tool: shell, command: git push*" in text and "careful.yml:6 (not from here)" in text
    assert "not by" in text and "the deciding rule is more specific" in text and "exec git push" in text
    found = json.loads(ctl(daemon, "policy", "explain", "careful", "shell", '{"command": "ls"}', "-o", "json").stdout)
    assert (found["effect"], found["outcome"]) == ("ask", "waits") and found["rule"]["source"].endswith(
        "careful.yml:5"
    )
    found = json.loads(
        ctl(daemon, "policy", "explain", "careful", "shell", '{"command": "ls"}', "--headless", "-o", "json").stdout
    )
    assert found["outcome"] == "fails" and "headless" in found["message"]
    with daemon.client() as otto:
        written = otto.explain("careful", "fs_write", {"path": "/etc/passwd", "content": ""}, cwd=daemon.workdir)
        assert (written.effect, written.outcome, [word.layer for word in written.layers]) == (
            "allow",
            "fails",
            ["beneath"],
        )
        assert written.message == "no rule forbids it, but beneath stops write /etc/passwd"
        listed = otto.explain("coder", "shell", {"command": "rm -rf / && curl http://x"}, cwd=daemon.workdir)
        assert listed.outcome == "runs" and {word.layer for word in listed.layers} <= {"files", "network"}
        given = {name for name, how in otto.status().isolation.items() if how.startswith(("yes", "partly"))}
        assert len(listed.layers) == bool(given & {"files", "sandbox"}) + ("network" in given)
        hook = otto.explain("careful", "fs_write", {"path": ".git/hooks/x", "content": ""}, cwd=daemon.workdir)
        assert (hook.authority, [word.layer for word in hook.layers]) == ("protected paths", ["protected paths"])
        missing = otto.explain("careful", "fs_read", {"path": "x"}, cwd=daemon.workdir)
        assert missing.outcome == "fails" and "has no tool fs_read" in missing.message
        wrong = otto.explain("careful", "fs_write", {"paht": "x"}, cwd=daemon.workdir)
        assert wrong.outcome == "fails" and "paht" in wrong.message
        bare = otto.explain("careful", "fs_write", "{}", cwd=daemon.workdir)
        assert bare.outcome == "fails" and "path" in bare.message
    for arguments in ('{"command": "ls"', "[]", "ls"):
        done = ctl(daemon, "policy", "explain", "careful", "shell", arguments)
        assert done.returncode == 2 and "JSON" in done.stderr and "mend:" in done.stderr, arguments
    assert ctl(daemon, "policy", "explain", "nobody", "shell").returncode == 2


def test_an_audit_entry_names_the_session_and_who() -> None:
    """What a record holds, so that it can be read without the session."""
    entry = AuditEntry(kind="answered", session="s-1", agent="a", tool="shell", decision="approved", by="me")
    assert entry.scope == "" and entry.claims == ()
