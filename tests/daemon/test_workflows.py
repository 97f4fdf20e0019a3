"""Workflows end to end: a real daemon, real sessions, scripted models, real tools."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from ottod.errors import OttoError
from ottod.isolation.processes import identify, send_signal
from ottod.protocol import journal as j
from ottod.protocol.events import IterationStarted
from ottod.protocol.specs import Backoff, Budgets
from ottod.protocol.workflows import Approval, Compensation, Condition, Output, Retry, WorkflowInput
from tests.daemon.harness import RealDaemon, wait_for
from tests.daemon.workshop import agent, block, ended, keep, ottoctl, paths, shell, start, step, worker, workflow


def test_a_sequence_hands_artifacts_on(daemon: RealDaemon) -> None:
    """A planner's answer is an artifact, and is told to whoever takes it as input; nobody else hears of it."""
    agent(daemon, "planner", {"text": "build the bridge"})
    agent(daemon, "builder", {"text": "built"})
    spec = workflow(
        "sequential",
        step("plan", "planner", outputs=(Output(name="ticket", kind="ticket", capture="answer"),)),
        step("build", "builder", inputs=("ticket",), task="Do as the ticket says."),
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec, "a bridge")
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        assert paths(session) == ["plan", "build"]
        plan, build = ended(session)
        assert plan.artifacts == ("ticket@1",)
        assert "build the bridge" in otto.session(build.session).info().task
        assert otto.session(build.session).info().parent == session.id
        assert "completed  build  builder" in result.result


def test_a_parallel_block_runs_side_by_side(daemon: RealDaemon) -> None:
    """Each waits for the other's file: they can only end if they run at once."""
    worker(daemon, "left", "touch left; while [ ! -e right ]; do sleep 0.05; done")
    worker(daemon, "right", "touch right; while [ ! -e left ]; do sleep 0.05; done")
    agent(daemon, "keeper", keep("note", "kept"), {"text": "ok"}, tools=["artifact_write"])
    spec = workflow(
        "sequential",
        block("both", "parallel", step("left"), step("right")),
        step("keep", "keeper", outputs=(Output(name="note"),)),
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        assert sorted(paths(session)[:2]) == ["both/left", "both/right"]
        assert "artifacts: note@1" in result.result


def test_a_loop_goes_back_until_the_reviewer_approves(daemon: RealDaemon) -> None:
    """The verdict is a field of a JSON artifact with a schema; the second iteration gets the first one's review."""
    worker(daemon, "builder", "echo x >> built")
    verdict = 'test "$(wc -l < built)" -ge 2 && v=APPROVED || v="NEEDS REVISION"'
    ask = verdict + '; echo "{\\"verdict\\": \\"$v\\"}" > review.json'
    agent(
        daemon,
        "reviewer",
        shell(ask),
        {"tools": [{"name": "artifact_write", "arguments": {"name": "review", "file": "review.json"}}]},
        {"text": "see the review"},
        tools=["shell", "artifact_write"],
    )
    schema = {"type": "object", "required": ["verdict"], "properties": {"verdict": {"type": "string"}}}
    until = Condition(artifact="review", field="verdict", equals="APPROVED")
    spec = workflow(
        "loop",
        step("build", "builder", inputs=("review",)),
        step("review", "reviewer", outputs=(Output(name="review", schema=schema),)),
        until=until,
        max_iterations=4,
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=90)
        assert result.ok, (result.cause, result.result)
        assert paths(session) == ["[1]/build", "[1]/review", "[2]/build", "[2]/review"]
        second = otto.session(ended(session)[2].session).info()
        assert "NEEDS REVISION" in second.task
        told = [e.event for e in session.events(follow=False)]
        assert [e.iteration for e in told if isinstance(e, IterationStarted)] == [1, 2]


def test_only_what_was_collected_decides(daemon: RealDaemon) -> None:
    """An implementer who keeps a verdict of his own, and a reviewer whose report is wrong, approve of nothing."""
    approved = keep("review", '{"verdict": "approved"}')
    agent(daemon, "builder", approved, {"text": "built"}, tools=["artifact_write"])
    agent(daemon, "reviewer", approved, {"text": "reviewed"}, tools=["artifact_write"])
    schema = {"type": "object", "required": ["blockers"]}
    spec = workflow(
        "loop",
        step("build", "builder"),
        step("review", "reviewer", outputs=(Output(name="review", schema=schema),), optional=True),
        until=Condition(artifact="review", field="verdict", equals="approved"),
        max_iterations=1,
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.cause is not None and result.cause.code == "exhausted", (result.cause, result.result)


def test_a_graph_begins_what_is_ready(daemon: RealDaemon) -> None:
    worker(daemon, "first", "touch first")
    worker(daemon, "second", "test -e first && touch second")
    worker(daemon, "last", "test -e first && test -e second")
    spec = workflow("graph", step("last", needs=("second",)), step("second", needs=("first",)), step("first"))
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        assert session.wait(timeout_s=60).ok
        assert paths(session) == ["first", "second", "last"]


def test_outputs_are_enforced(daemon: RealDaemon) -> None:
    """What is missing, of another kind or against its schema fails the attempt; the next one is told why."""
    agent(daemon, "vague", {"text": "no data here"})
    agent(daemon, "exact", {"text": '{"n": 1}'})
    data = Output(name="data", capture="answer", schema={"type": "object", "required": ["n"]})
    missing = workflow("sequential", step("a", "vague", outputs=(Output(name="x", capture="artifact"),)))
    wrong = workflow(
        "sequential",
        step(
            "a",
            "vague",
            outputs=(data,),
            retry=Retry(attempts=2, backoff=Backoff(base_s=0, jitter=0), fallback_agent="exact"),
        ),
    )
    with daemon.client() as otto:
        session = start(daemon, otto, missing)
        result = session.wait(timeout_s=60)
        assert result.cause is not None and result.cause.kind == "failed" and result.cause.code == "output_missing"
        session = start(daemon, otto, wrong)
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        first, second = ended(session)
        assert first.outcome == "failed" and second.artifacts == ("data@1",)
        assert "has tried this before" in otto.session(second.session).info().task


def test_what_a_step_changed_is_kept_as_a_diff(daemon: RealDaemon) -> None:
    subprocess.run(["git", "init", "-q", str(daemon.workdir)], check=True)
    worker(daemon, "coder", "echo new > added.txt")
    spec = workflow(
        "sequential", step("code", "coder", outputs=(Output(name="diff", kind="code_diff", capture="diff"),))
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        info = otto.artifact("diff", session=session.id)
        text = otto.read_artifact(info).decode()
        assert "+new" in text and "added.txt" in text and info.kind == "code_diff"


def test_a_diff_has_what_every_attempt_changed(daemon: RealDaemon) -> None:
    """Of the fallback's attempt, and of one that goes on with an ended workflow, from before the first one on."""
    subprocess.run(["git", "init", "-q", str(daemon.workdir)], check=True)
    change = shell("echo much > much.txt")
    agent(daemon, "first", change, {"error": {"status": 400, "message": "no"}}, tools=["shell"])
    worker(daemon, "other", "echo little > little.txt")
    diff = (Output(name="diff", capture="diff"),)
    retry = Retry(attempts=2, backoff=Backoff(base_s=0, jitter=0), fallback_agent="other")
    with daemon.client() as otto:
        session = start(daemon, otto, workflow("sequential", step("code", "first", outputs=diff, retry=retry)))
        assert session.wait(timeout_s=60).ok
        text = otto.read_artifact(otto.artifact("diff", session=session.id)).decode()
        assert "+much" in text and "+little" in text
        (daemon.workdir / "much.txt").unlink()
        broken = start(daemon, otto, workflow("sequential", step("code", "first", outputs=diff)))
        assert not broken.wait(timeout_s=60).ok
        agent(daemon, "first", shell("echo least > least.txt"), {"text": "done"}, tools=["shell"])
        again = broken.resume()
        assert again.wait(timeout_s=60).ok
        text = otto.read_artifact(otto.artifact("diff", session=again.id)).decode()
        assert "+much" in text and "+least" in text and "+little" not in text


def test_a_diff_can_be_of_all_rounds_of_a_loop(daemon: RealDaemon) -> None:
    subprocess.run(["git", "init", "-q", str(daemon.workdir)], check=True)
    turns = {"when": {"user_contains": "round 1"}, "turns": [shell("echo much > much.txt"), {"text": "done"}]}
    then = {"when": {}, "turns": [shell("echo little > little.txt"), {"text": "done"}]}
    agent(daemon, "coder", tools=["shell"])
    script = daemon.workdir / ".otto" / "agents" / "coder.script.yaml_"
    script.write_text(json.dumps({"cases": [turns, then]}))
    outputs = (Output(name="last", capture="diff"), Output(name="whole", capture="diff", since="loop"))
    with daemon.client() as otto:
        spec = workflow(
            "loop",
            step("code", "coder", task="round {{iteration}}", outputs=outputs),
            until=Condition(step="code", status="skipped"),
            max_iterations=2,
            on_exhausted="continue",
        )
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        last, whole = (
            otto.read_artifact(otto.artifact(name, session=session.id)).decode() for name in ("last", "whole")
        )
        assert "+little" in last and "+much" not in last
        assert "+little" in whole and "+much" in whole


def test_a_cancelled_workflow_leaves_nothing(daemon: RealDaemon) -> None:
    """All its steps are stopped, nothing is undone, and it says what is left as it is."""
    worker(daemon, "done", "true")
    worker(daemon, "slow", "sleep 300")
    worker(daemon, "undoer", "touch undone")
    undo = Compensation(agent="undoer", task="undo it")
    slow = [step(f"s{n}", "slow") for n in range(3)]
    spec = workflow("sequential", step("a", "done", compensate=undo), block("p", "parallel", *slow))
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, spec)
        children = wait_for(
            "three run", lambda: [i for i in otto.list() if i.current_tool == "shell" and len(otto.list()) == 4]
        )
        stopped = session.stop(grace_s=60)
        assert not stopped.remaining_pids and len(stopped.stopped) == 4, stopped
        result = session.wait(timeout_s=10)
        assert result.cause is not None and result.cause.kind == "cancelled"
        assert "not undone: a" in result.result and not (daemon.workdir / "undone").exists()
        assert len(children) <= 3 and not otto.list()


def test_what_completed_is_undone_when_the_workflow_fails(daemon: RealDaemon) -> None:
    """In reverse, once each; also where somebody fails behind his effect, and goes on in the next attempt."""
    worker(daemon, "doer", "true")
    agent(daemon, "breaker", {"error": {"code": "broken", "message": "it broke"}})
    worker(daemon, "undo-one", "echo one >> undone")
    again = {"when": {"user_contains": "tried before, and failed"}, "text": "it was undone already"}
    then = {"alternatives": [again, {"error": {"status": 400, "message": "no"}}]}
    agent(daemon, "undo-two", shell("echo two >> undone"), then, tools=["shell"])
    spec = workflow(
        "sequential",
        step("one", "doer", compensate=Compensation(agent="undo-one", task="undo one")),
        step("two", "doer", compensate=Compensation(agent="undo-two", task="undo two of {{ task }}")),
        step("three", "breaker"),
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=90)
        assert result.cause is not None and result.cause.kind == "failed", result
        assert (daemon.workdir / "undone").read_text() == "two\none\n"
        undone = [entry for entry in session.journal() if isinstance(entry, j.CompensationEnded)]
        assert [(e.path, e.attempt, e.outcome) for e in undone] == [
            ("two", 1, "failed"), ("two", 2, "completed"), ("one", 1, "completed")
        ]  # fmt: skip
        first, second = (otto.session(entry.session).info() for entry in undone[:2])
        assert "undo two of go" in first.task and second.resumed_from == first.session


def test_a_step_waits_for_its_approval(daemon: RealDaemon) -> None:
    worker(daemon, "deploy", "touch deployed")
    spec = workflow("sequential", step("deploy", approval=Approval(reason="to production?")))
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        (waiting,) = wait_for("it asks", lambda: session.info().approvals)
        wait_for("it says so", lambda: session.info().state == "waiting_approval")
        assert waiting.reason == "to production?"
        assert not (daemon.workdir / "deployed").exists()
        otto.approve(waiting.approval)
        assert session.wait(timeout_s=60).ok and (daemon.workdir / "deployed").exists()
        # With nobody to ask it fails at once.
        result = start(daemon, otto, spec, headless=True).wait(timeout_s=60)
        assert result.cause is not None and result.cause.code == "approval_unavailable"


def test_a_paused_workflow_begins_no_step(daemon: RealDaemon) -> None:
    worker(daemon, "first", "touch begun; while [ ! -e go ]; do sleep 0.05; done")
    worker(daemon, "second", "true")
    spec = workflow("sequential", step("first"), step("second"))
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        wait_for("it runs", lambda: (daemon.workdir / "begun").exists())
        session.pause()
        (daemon.workdir / "go").touch()
        wait_for("the first has ended", lambda: paths(session) == ["first"])
        assert session.info().state == "paused" and not [i for i in otto.list() if i.session != session.id]
        session.unpause()
        assert session.wait(timeout_s=60).ok


def test_a_worker_that_is_killed_goes_on_where_it_was(daemon: RealDaemon) -> None:
    """The workflow's own process and that of a running step: nothing that has ended is done again."""
    worker(daemon, "counted", "echo counted >> log")
    worker(daemon, "slow", "echo slow >> log; touch begun; while [ ! -e go ]; do sleep 0.05; done")
    spec = workflow("sequential", step("one", "counted"), step("two", "slow"), step("three", "counted"))
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, spec)
        wait_for("the second runs", lambda: (daemon.workdir / "begun").exists())
        (child,) = [i for i in otto.list() if i.session != session.id]
        victim = identify(session.info().pid)
        assert victim is not None and send_signal(victim, signal.SIGKILL)
        wait_for("it is back", lambda: session.info().incarnation == 2 and session.info().state == "running")
        (daemon.workdir / "go").touch()
        result = session.wait(timeout_s=90)
        assert result.ok, (result.cause, result.result)
        assert (daemon.workdir / "log").read_text() == "counted\nslow\ncounted\n"
        assert paths(session) == ["one", "two", "three"] and ended(session)[1].session == child.session


def test_a_step_whose_process_is_killed_goes_on(daemon: RealDaemon) -> None:
    agent(
        daemon,
        "sleeper",
        {"tools": [{"name": "fs_list", "arguments": {}}]},
        {"text": "slept well " * 20, "delay_ms": 150},
        tools=["fs_list"],
        restart={"backoff": {"base_s": 0}},
    )
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, workflow("sequential", step("a", "sleeper")))
        (child,) = wait_for("it runs", lambda: [i for i in otto.list() if i.parent and i.state == "running"])
        victim = identify(child.pid)
        assert victim is not None and send_signal(victim, signal.SIGKILL)
        assert session.wait(timeout_s=90).ok
        assert otto.session(child.session).info().incarnation == 2


def test_only_a_workflow_starts_steps_and_only_by_its_own_agents(daemon: RealDaemon) -> None:
    with daemon.client() as otto:
        with pytest.raises(OttoError, match="nobody"):
            start(daemon, otto, workflow("sequential", step("a", "nobody")))
        agent(daemon, "idle", {"text": "ok"})
        spec = workflow("sequential", step("a", "idle", inputs=("ticket",)), inputs=(WorkflowInput(name="ticket"),))
        with pytest.raises(OttoError, match="needs the input ticket"):
            start(daemon, otto, spec)
        with pytest.raises(OttoError, match="no input"):
            start(daemon, otto, spec, inputs={"ticket": "t", "other": "o"})
        session = start(daemon, otto, spec, inputs={"ticket": "what to do"})
        assert session.wait(timeout_s=60).ok
        assert "what to do" in otto.session(ended(session)[0].session).info().task


def test_the_command_line_runs_a_workflow_and_tells_where_it_is(daemon: RealDaemon) -> None:
    """A line for each step while it runs, the result at the end, the outcome as status; and a table afterwards."""
    agent(daemon, "planner", {"text": "the plan"})
    agent(daemon, "breaker", {"error": {"status": 400, "message": "no"}})
    directory = daemon.workdir / ".otto" / "workflows"
    directory.mkdir(parents=True)
    (directory / "good.yml").write_text(
        "inputs: [{name: ticket, kind: ticket}]\n"
        "steps:\n"
        "  - {id: plan, agent: planner, inputs: [ticket], outputs: [{name: design, capture: answer}]}\n"
    )
    (directory / "bad.yml").write_text("steps:\n  - {id: break, agent: breaker, task: do it}\n")
    done = ottoctl(daemon, "workflow", "run", "good", "a bridge", "--input", "ticket=T-1")
    assert done.returncode == 0, done.stderr
    assert "▸ plan · planner" in done.stderr and "✓ plan · design@1" in done.stderr
    assert "completed  plan  planner" in done.stdout
    with daemon.client() as otto:
        (session,) = [i for i in otto.list(all=True) if i.kind == "workflow"]
    shown = ottoctl(daemon, "workflow", "status", session.session)
    assert "plan" in shown.stdout and "design@1" in shown.stdout and "completed" in shown.stdout
    failed = ottoctl(daemon, "workflow", "run", "bad", "x")
    assert failed.returncode == 1 and "✗ break" in failed.stderr
    wrong = ottoctl(daemon, "workflow", "run", "good", "x", "--input", "other=1")
    assert wrong.returncode == 2 and "takes no input" in wrong.stderr


def test_what_a_step_does_not_use_of_the_budget_is_there_for_the_next(daemon: RealDaemon) -> None:
    """Either step alone wants most of it; and a step's own budget is narrower than its agent's."""
    frugal = {"text": "done", "usage": {"input_tokens": 50, "output_tokens": 50}}
    agent(daemon, "frugal", frugal, max_output_tokens=8000)
    spec = workflow("sequential", step("a", "frugal"), step("b", "frugal"), budgets=Budgets(tokens=14_000))
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        narrow = workflow("sequential", step("a", "frugal", budgets=Budgets(tokens=0)))
        result = start(daemon, otto, narrow).wait(timeout_s=60)
        assert result.cause is not None and result.cause.kind == "budget"


def test_a_step_that_takes_too_long_is_stopped(daemon: RealDaemon) -> None:
    worker(daemon, "slow", "sleep 300")
    with daemon.client(timeout_s=120) as otto:
        session = start(daemon, otto, workflow("sequential", step("a", "slow", timeout_s=1.0)))
        result = session.wait(timeout_s=90)
        assert result.cause is not None and result.cause.code == "timeout"
        assert not otto.list()


def test_a_workflow_is_no_conversation(daemon: RealDaemon) -> None:
    agent(daemon, "one", {"text": "done"})
    with daemon.client() as otto:
        session = start(daemon, otto, workflow("sequential", step("a", "one")))
        assert session.wait(timeout_s=60).ok
        # It was made here, and no command finds it.
        again = "run it again with the spec"
        for refuse in (lambda: session.resume("more"), session.resume, lambda: session.fork("more")):
            with pytest.raises(OttoError) as refused:
                refuse()
            assert again in refused.value.mend
        assert "is a workflow" in refused.value.message


def test_a_long_input_reaches_a_step_as_a_summary(daemon: RealDaemon) -> None:
    """Written once for both who need it; where nobody writes one the beginning stands for the text."""
    agent(daemon, "writer", {"text": "long " * 200})
    agent(daemon, "reader", {"text": "read"})
    agent(daemon, "shortener", {"text": "the gist"})
    steps = (
        step("write", "writer", outputs=(Output(name="book", capture="answer"),)),
        block("read", "parallel", step("r1", "reader", inputs=("book",)), step("r2", "reader", inputs=("book",))),
    )
    with daemon.client() as otto:
        session = start(
            daemon, otto, workflow("sequential", *steps, summarizer="shortener", summarize_above_bytes=256)
        )
        assert session.wait(timeout_s=60).ok
        tasks = [otto.session(entry.session).info().task for entry in ended(session)[1:]]
        assert all("the gist" in task and "This stands for 1000 bytes" in task for task in tasks), tasks
        (shortener,) = [info for info in otto.list(all=True) if info.agent == "shortener"]
        kept = otto.artifact("summary-book", session=session.id)
        book = otto.artifact("book", session=session.id)
        assert (kept.kind, kept.session, kept.sources) == ("summary", shortener.session, (book.artifact,))
        assert f'artifact "{book.artifact}"' not in tasks[0], "its readers have no tool for it"
        session = start(daemon, otto, workflow("sequential", *steps, summarize_above_bytes=256))
        assert session.wait(timeout_s=60).ok
        assert "long long" in otto.session(ended(session)[1].session).info().task


def test_one_that_has_failed_goes_on_where_it_ended(daemon: RealDaemon) -> None:
    """As another session of the same tree: finished steps are not run again, and their artifacts are handed on."""
    worker(daemon, "first", "echo x >> first")
    agent(daemon, "planner", {"text": "of wood"})
    take = {"tools": [{"name": "artifact_write", "arguments": {"name": "bridge", "file": "wood"}}]}
    agent(daemon, "builder", take, {"text": "built"}, tools=["artifact_write"])
    spec = workflow(
        "sequential",
        step("first"),
        step("plan", "planner", outputs=(Output(name="ticket", capture="answer"),)),
        step(
            "build",
            "builder",
            task="{{task}}",
            inputs=("ticket",),
            outputs=(Output(name="bridge", capture="artifact"),),
        ),
        step("look", "planner", inputs=("bridge",), outputs=(Output(name="ticket", capture="answer"),)),
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec, "a bridge")
        assert not session.wait(timeout_s=60).ok
        assert paths(session) == ["first", "plan"]
        (daemon.workdir / "wood").write_text("wood")
        with pytest.raises(OttoError, match="takes no messages"):
            session.resume("go on")
        again = session.resume()
        result = again.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        info = again.info()
        assert again.id != session.id and info.resumed_from == session.id
        assert info.task == "a bridge" and info.tree == session.id
        assert paths(again) == ["build", "look"]
        assert result.result.count("completed  ") == 4 and "not run" not in result.result
        assert (daemon.workdir / "first").read_text() == "x\n"
        told = otto.session(ended(again)[0].session).info().task
        assert "a bridge" in told and "of wood" in told
        assert ended(again)[-1].artifacts == ("ticket@2",)
        with pytest.raises(OttoError, match="left nothing to be done") as failure:
            again.resume()
        assert failure.value.code == "nothing_to_resume"


def test_one_that_was_stopped_goes_on_where_it_was(daemon: RealDaemon) -> None:
    """The step that ran is run again, with a session of its own; what the command line is told is the new one."""
    worker(daemon, "first", "echo x >> first")
    agent(daemon, "slow", {"text": "never", "stall": 60})
    with daemon.client() as otto:
        session = start(daemon, otto, workflow("sequential", step("first"), step("slow"), step("last", "first")))
        wait_for("the first step", lambda: paths(session) == ["first"])
        session.stop()
        (daemon.workdir / ".otto" / "agents" / "slow.script.yaml_").write_text('{"turns": [{"text": "ok"}]}')
        argv = [sys.executable, "-m", "ottoctl", "resume", session.id]
        ran = subprocess.run(argv, env=daemon.env, cwd=daemon.workdir, capture_output=True, timeout=60, text=True)
        assert ran.returncode == 0, ran.stderr
        (again,) = [i for i in otto.list(all=True) if i.resumed_from == session.id]
        assert otto.session(again.session).wait(timeout_s=60).ok
        assert paths(otto.session(again.session)) == ["slow", "last"]
        argv = [sys.executable, "-m", "ottoctl", "workflow", "status", again.session, "-o", "json"]
        ran = subprocess.run(argv, env=daemon.env, capture_output=True, timeout=60, text=True)
        rows = [(row["path"], row["state"]) for row in json.loads(ran.stdout)["steps"]]
        assert rows == [("first", "completed"), ("slow", "completed"), ("last", "completed")]
        assert (daemon.workdir / "first").read_text() == "x\nx\n"
