"""Artifacts through a whole daemon: kept once, read by the tree and by people, lost by nobody's death."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ottoctl.sync import SyncOtto
from ottod.errors import RefusedError
from ottod.isolation.processes import identify, send_signal
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.events import ArtifactWritten
from ottod.protocol.specs import Backoff, Restart
from tests.daemon.harness import RealDaemon, files_below, running_daemon, wait_for

TOOLS = ("artifact_write", "artifact_read", "artifact_list", "spawn_agent", "shell")
TRANSIENT = Restart(policy="transient", backoff=Backoff(base_s=0))


def write(name: str, content: str | None = None, **more: object) -> dict[str, object]:
    """A step of a script that keeps an artifact."""
    arguments = {"name": name, **more, **({} if content is None else {"content": content})}
    return {"tools": [{"name": "artifact_write", "arguments": arguments}]}


def read(artifact: str) -> dict[str, object]:
    return {"tools": [{"name": "artifact_read", "arguments": {"artifact": artifact}}]}


def stored(daemon: RealDaemon) -> set[str]:
    """The digests in the store."""
    return {path.name for path in (daemon.base / "state" / "artifacts").glob("??/*")}


def told(otto: SyncOtto, session: str) -> list[ArtifactWritten]:
    """What the session's events say that it kept."""
    events = [e.event for e in otto.session(session).events(follow=False)]
    return [e for e in events if isinstance(e, ArtifactWritten)]


def ctl(daemon: RealDaemon, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "ottoctl", *arguments], env=daemon.env, capture_output=True, timeout=60, check=False
    )


@pytest.mark.real
def test_artifacts_are_a_tree_s() -> None:
    """A child reads what its parent kept, and the other way round; a stranger does not; people do, and export it."""
    with running_daemon() as daemon, daemon.client() as otto:
        child = daemon.script(
            "child", read("plan.md"), write("review.md", "fine: ${last_tool_result}"), {"text": "ok"}
        )
        agents = daemon.workdir / ".otto" / "agents"
        agents.mkdir(parents=True)
        (agents / "helper.yml").write_text(json.dumps({"model": child, "tools": list(TOOLS)}))
        parent = daemon.script(
            "parent",
            write("plan.md", "one\n", kind="design"),
            write("plan.md", "two\n", kind="design", sources=["plan.md@1"]),
            {"tools": [{"name": "spawn_agent", "arguments": {"agent": "helper", "task": "review"}}]},
            read("review.md"),
            {"text": "${last_tool_result}"},
        )
        top = otto.run(spec=daemon.agent(parent, *TOOLS), task="go", cwd=daemon.workdir)
        assert top.ok and "fine: [plan.md, version 2" in top.result and "two" in top.result
        stranger = daemon.script("stranger", read("plan.md"), {"text": "${last_tool_result}"})
        other = otto.run(spec=daemon.agent(stranger, *TOOLS), task="go", cwd=daemon.workdir)
        assert "there is no artifact plan.md" in other.result

        review, plan = otto.artifacts(session=top.session)
        assert (review.name, review.version, plan.name, plan.version, plan.kind) == (
            "review.md",
            1,
            "plan.md",
            2,
            "design",
        )
        assert review.session != top.session and {review.tree, plan.tree} == {top.session}
        first = otto.artifact("plan.md", session=review.session, version=1)
        assert plan.sources == (first.artifact,) and otto.read_artifact(first) == b"one\n"
        assert [e.artifact for e in told(otto, top.session)] == [first.artifact, plan.artifact]

        listed = json.loads(ctl(daemon, "artifact", "list", "-a", "-o", "json").stdout)
        assert [a["artifact"] for a in listed] == [review.artifact, plan.artifact, first.artifact]
        shown = ctl(daemon, "artifact", "show", plan.artifact[:9], "--session", top.session)
        assert shown.stdout == b"two\n"
        target = daemon.workdir / "out.md"
        assert ctl(daemon, "artifact", "export", first.artifact, "--to", str(target)).returncode == 0
        assert target.read_bytes() == b"one\n"
        refused = ctl(daemon, "artifact", "export", first.artifact, "--to", str(target))
        assert refused.returncode == 2 and b"--force" in refused.stderr
        assert b"plan.md" in ctl(daemon, "artifact", "list").stdout
        assert ctl(daemon, "artifact", "show", "none.md").returncode == 5

        # They stay as long as one session of the tree is on record.
        otto.session(top.session).remove()
        assert otto.artifact(plan.artifact) == plan
        otto.session(review.session).remove()
        with pytest.raises(RefusedError):
            otto.artifact(plan.artifact)
        wait_for("the content is gone", lambda: not stored(daemon))


@pytest.mark.real
def test_the_asynchronous_client_reads_them() -> None:
    """The library's two halves do the same, with content that takes several replies."""
    with running_daemon() as daemon:
        asyncio.run(read_big(daemon))


async def read_big(daemon: RealDaemon) -> None:
    big = "0123456789abcdef" * 40_000
    (daemon.workdir / "big.txt").write_text(big)
    model = daemon.script("big", write("big.txt", file="big.txt"), {"text": "ok"})
    async with daemon.async_client() as otto:
        result = await otto.run(spec=daemon.agent(model, *TOOLS), task="go", cwd=daemon.workdir)
        (info,) = await otto.artifacts(session=result.session)
        assert info == await otto.artifact("big.txt", session=result.session)
        assert await otto.read_artifact(info) == big.encode()


@pytest.mark.real
def test_a_killed_worker_and_a_killed_root_lose_nothing() -> None:
    """The worker dies, then root, in the midst of many: each name has its version, once, told and readable."""
    with running_daemon() as daemon:
        steps = [write(f"a{n}.md", f"content {n}\n") for n in range(6)]
        kill = {"tools": [{"name": "shell", "arguments": {"command": "touch reached; sleep 1"}}]}
        model = daemon.script("many", *steps[:2], kill, *steps[2:], kill, {"text": "done"})
        with daemon.client() as otto:
            session = otto.start(spec=daemon.agent(model, *TOOLS, restart=TRANSIENT), task="go", cwd=daemon.workdir)
            wait_for("the first call of the shell", lambda: (daemon.workdir / "reached").exists())
            worker = identify(session.info().pid)
            assert worker is not None and send_signal(worker, signal.SIGKILL)
            wait_for("some more", lambda: len(otto.artifacts(session=session.id)) >= 3)
            daemon.kill()
        orphan = daemon.base / "state" / "artifacts" / "00" / ("00" * 32)
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"a crash came before its row")
        daemon.start()
        with daemon.client() as otto:
            assert otto.session(session.id).wait().ok
            found: tuple[ArtifactInfo, ...] = otto.artifacts(session=session.id, all_versions=True)
            assert sorted((a.name, a.version) for a in found) == [(f"a{n}.md", 1) for n in range(6)]
            for info in found:
                assert otto.read_artifact(info) == f"content {info.name[1]}\n".encode()
            assert {e.artifact for e in told(otto, session.id)} == {a.artifact for a in found}
        wait_for("what nobody means is swept away", lambda: not orphan.exists())
        assert stored(daemon) == {info.digest for info in found}


def left_in_handover(daemon: RealDaemon) -> list[Path]:
    return [path for path in files_below(daemon.base / "state" / "sessions") if path.parent.name == "artifacts"]


@pytest.mark.real
def test_no_copy_is_left_in_the_session() -> None:
    """What went to and fro between worker and root is gone when the call is over."""
    with running_daemon() as daemon, daemon.client() as otto:
        model = daemon.script("w", write("a.md", "x"), read("a.md"), read("none.md"), {"text": "ok"})
        assert otto.run(spec=daemon.agent(model, *TOOLS), task="go", cwd=daemon.workdir).ok
        assert left_in_handover(daemon) == []


@pytest.mark.real
def test_who_goes_on_reads_what_there_was() -> None:
    """A fork's conversation speaks of artifacts: it reads them as they were when it began."""
    with running_daemon() as daemon, daemon.client() as otto:
        model = daemon.script(
            "m",
            write("plan.md", "the old plan\n"),
            {"text": "kept"},
            write("plan.md", "newer\n"),
            {"text": "kept again"},
        )
        first = otto.start(spec=daemon.agent(model, *TOOLS), task="go", cwd=daemon.workdir, mode="conversation")
        first.wait(idle=True)
        look = {
            "tools": [
                {"name": "artifact_read", "arguments": {"artifact": "plan.md"}},
                {"name": "artifact_list", "arguments": {}},
            ]
        }
        said = {"text": "${last_tool_result}"}
        mine = write("plan.md", "mine\n", sources=["plan.md@1"])
        daemon.script("m", *({"text": "of the first"},) * 2, look, said, mine, look, said)
        fork = first.fork(turn=1)
        first.send("again")
        wait_for("the second version", lambda: len(told(otto, first.id)) == 2 and first.info().state == "idle")
        fork.send("read it")
        wait_for("its turn", lambda: fork.info().turn == 2 and fork.info().state == "idle")
        fork.stop()
        result = fork.wait().result
        assert "the old plan" in result and "newer" not in result and "version 2" not in result

        heir = fork.resume("make your own", mode="oneshot")
        result = heir.wait().result
        assert "mine" in result and "the old plan" not in result and result.count("made from") == 1
        (own,) = otto.artifacts(session=heir.id)
        (source,) = own.sources
        assert own.version == 1 and otto.artifact(source).session == first.id

        stranger = daemon.script("stranger", write("x.md", "x", sources=[source]), said)
        other = otto.run(spec=daemon.agent(stranger, *TOOLS), task="go", cwd=daemon.workdir)
        assert "to be made from" in other.result
