"""Sinks end to end: a real daemon, real git, real SQLite, a real HTTP server on loopback, and kills."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from ottoctl.sync import SyncSession
from ottod.errors import OttoError
from ottod.isolation.processes import identify, send_signal
from ottod.protocol import journal as j
from ottod.protocol.artifacts import ArtifactInfo
from ottod.protocol.events import ArtifactDelivered, ArtifactUndelivered
from ottod.protocol.sinks import Sink
from ottod.protocol.specs import Backoff, Budgets
from ottod.protocol.workflows import Output, WorkflowSpec
from ottod.worker.failpoints import WORKFLOW_VARIABLE
from tests.daemon.harness import RealDaemon, content, files_below, running_daemon, wait_for
from tests.daemon.test_workflows import ottoctl
from tests.daemon.workshop import agent, ended, start, step, worker, workflow
from tests.docs.markdown import ROOT, blocks

SECRET = "hook-secret-that-nobody-may-see"
SOON = Backoff(base_s=0.02, jitter=0)


class Listener:
    """An HTTP server that remembers what it was sent, and answers with the statuses that it was told, then 200."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                if len(body := self.rfile.read(length)) < length:
                    return  # Whoever sent it was killed meanwhile.
                listener.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                status = listener.statuses.pop(0) if listener.statuses else 200
                listener.hold.wait(30)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                if status in (301, 307):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.place = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.place}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def keys(self) -> list[str]:
        return [headers["idempotency-key"] for headers, _ in self.got]


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def daemon_for(listener: Listener, **env: str) -> Iterator[RealDaemon]:
    """A daemon whose sinks may go to the listener and sign with a secret."""
    settings = {
        "sinks": {"local": [listener.place], "secrets": ["hook"]},
        "secrets": {"hook": {"env": "HOOK_SECRET"}},
    }
    with running_daemon(settings, {"HOOK_SECRET": SECRET, **env}) as daemon:
        yield daemon


def planned(*sinks: Sink, **fields: Any) -> WorkflowSpec:
    """A workflow of one step, whose answer is its artifact `ticket`."""
    kept = (Output(name="ticket", kind="ticket", capture="answer"),)
    return workflow("sequential", step("plan", "planner", outputs=kept), sinks=sinks, **fields)


def git(directory: Path, *arguments: str) -> str:
    words = ["git", "-c", "user.name=u", "-c", "user.email=u@example.org", *arguments]
    return subprocess.run(words, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


def repository(directory: Path) -> None:
    """One with a commit, a staged change and another that is not."""
    git(directory, "init", "-q", "-b", "trunk")
    (directory / ".gitignore").write_text(".otto\n")
    (directory / "kept.txt").write_text("kept\n")
    git(directory, "add", ".gitignore", "kept.txt")
    git(directory, "commit", "-q", "-m", "first")
    (directory / "staged.txt").write_text("staged\n")
    git(directory, "add", "staged.txt")
    (directory / "kept.txt").write_text("changed\n")


def test_artifacts_become_files(daemon: RealDaemon) -> None:
    """Under their names or where the file says; a later run replaces what Otto wrote, and nothing that others did."""
    agent(daemon, "planner", {"text": "build the bridge"})
    sink = Sink(to="filesystem", path="docs/otto", files={"design": "docs/design.md"})
    outputs = (Output(name="ticket", capture="answer"),)
    spec = workflow(
        "sequential",
        step("plan", "planner", outputs=outputs),
        step("draw", "planner", outputs=(Output(name="design", capture="answer"),)),
        sinks=(sink,),
    )
    with daemon.client() as otto:
        first = start(daemon, otto, spec)
        assert first.wait(timeout_s=60).ok
        ticket, design = daemon.workdir / "docs/otto/ticket", daemon.workdir / "docs/design.md"
        assert ticket.read_text() == design.read_text() == "build the bridge"
        (sent,) = otto.artifact("ticket", session=first.id).deliveries
        assert (sent.sink, sent.state, sent.place) == ("filesystem", "delivered", str(ticket.resolve()))
        design.write_text("mine")
        agent(daemon, "planner", {"text": "build it anew"})
        second = start(daemon, otto, spec)
        assert second.wait(timeout_s=60).ok, "a sink that is not required fails nothing"
        assert ticket.read_text() == "build it anew" and design.read_text() == "mine"
        (failed,) = [e.event for e in second.events(follow=False) if isinstance(e.event, ArtifactUndelivered)]
        assert (failed.name, failed.failure.code, failed.retry_ms) == ("design", "conflict", 0)
        (said,) = otto.artifact("design", session=second.id).deliveries
        assert said.state == "failed" and "did not write" in said.reason
        bold = start(daemon, otto, planned(Sink(to="filesystem", path="docs", on_conflict="replace")))
        assert bold.wait(timeout_s=60).ok
        (daemon.workdir / "docs/ticket").write_text("mine")
        bold = start(daemon, otto, planned(Sink(to="filesystem", path="docs", on_conflict="replace")))
        assert bold.wait(timeout_s=60).ok and (daemon.workdir / "docs/ticket").read_text() == "build it anew"
        (told,) = [e.event for e in bold.events(follow=False) if isinstance(e.event, ArtifactDelivered)]
        assert "changed by somebody else" in told.note


def test_a_resumed_workflow_delivers_what_was_given_up_on(daemon: RealDaemon) -> None:
    """Once what was in the way is mended; its files are known as Otto's when the sessions have been removed."""
    agent(daemon, "planner", {"text": "build the bridge"})
    file = daemon.workdir / "docs/ticket"
    file.parent.mkdir()
    file.write_text("mine")
    spec = planned(Sink(to="filesystem", path="docs", required=True))
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.cause is not None and result.cause.code == "undelivered"
        file.rename(daemon.workdir / "mine")
        again = session.resume()
        assert again.wait(timeout_s=60).ok and file.read_text() == "build the bridge"
        (sent,) = otto.artifact("ticket", session=session.id).deliveries
        assert sent.state == "delivered" and len(ended(session)) == 1
        assert not ended(again)
        for each in (again, session):
            assert ottoctl(daemon, "rm", each.id).returncode == 0
        agent(daemon, "planner", {"text": "build it anew"})
        assert start(daemon, otto, spec).wait(timeout_s=60).ok and file.read_text() == "build it anew"


def test_files_stay_inside_and_rules_hold(daemon: RealDaemon) -> None:
    """A symlink that leads out is not followed, and a rule that denies a path holds for sinks; `required` fails."""
    agent(daemon, "planner", {"text": "out"})
    outside = daemon.base / "outside"
    outside.mkdir()
    (daemon.workdir / "link").symlink_to(outside)
    with daemon.client() as otto:
        session = start(daemon, otto, planned(Sink(to="filesystem", path="link", required=True)))
        result = session.wait(timeout_s=60)
        assert result.cause is not None and (result.cause.kind, result.cause.code) == ("failed", "undelivered")
        assert not list(outside.iterdir())
        rules = {"preset": "autonomous", "rules": [{"effect": "deny", "tool": "*", "path": "secret/**"}]}
        spec = planned(Sink(to="filesystem", path="secret"), permissions=rules)
        session = start(daemon, otto, spec)
        assert session.wait(timeout_s=60).ok and not (daemon.workdir / "secret/ticket").exists()
        (failed,) = [e for e in session.journal() if isinstance(e, j.DeliveryFailed)]
        assert failed.failure.code == "denied" and failed.is_final


def test_a_branch_gets_a_commit_for_each_step(daemon: RealDaemon) -> None:
    """With the artifacts' ids, and without a trace in the checkout, the index or HEAD."""
    repository(daemon.workdir)
    before = git(daemon.workdir, "status", "--porcelain=v1"), git(daemon.workdir, "rev-parse", "HEAD")
    agent(daemon, "planner", {"text": "the plan"})
    worker(daemon, "coder", "echo new > added.txt")
    worker(daemon, "idler", "true")
    spec = workflow(
        "sequential",
        step("plan", "planner", outputs=(Output(name="ticket", capture="answer"),)),
        step("code", "coder", outputs=(Output(name="diff", capture="diff"),)),
        step("idle", "idler"),
        git_branch=True,
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        branch = f"otto/{session.id}"
        log = git(daemon.workdir, "log", "--format=%s|%(trailers:key=Otto-Artifact,valueonly,separator=;)", branch)
        ids = {name: otto.artifact(name, session=session.id) for name in ("ticket", "diff")}
        assert log.splitlines() == [
            f"code of flow|{ids['diff'].artifact} diff@1",
            f"plan of flow|{ids['ticket'].artifact} ticket@1",
            "first|",
        ]
        assert git(daemon.workdir, "show", "--name-only", "--format=", branch) == "added.txt"
        assert git(daemon.workdir, "diff", "--name-only", f"{branch}~1", "HEAD") == "", (
            "the user's own work is no step's"
        )
        (daemon.workdir / "added.txt").unlink()
        assert (git(daemon.workdir, "status", "--porcelain=v1"), git(daemon.workdir, "rev-parse", "HEAD")) == before
        assert git(daemon.workdir, "symbolic-ref", "--short", "HEAD") == "trunk"
        (sent,) = ids["diff"].deliveries
        assert sent.place.startswith(f"{branch}@")
        assert ids["diff"].session == ended(session)[1].session and ids["diff"].step == "code"
        # Without a repository the workflow says so, and goes on.
        (daemon.workdir / ".git").rename(daemon.base / "gone")
        session = start(daemon, otto, workflow("sequential", spec.steps[0], git_branch=True))
        assert session.wait(timeout_s=60).ok
        (failed,) = [e for e in session.journal() if isinstance(e, j.DeliveryFailed)]
        assert failed.failure.code == "no_repository"


def test_a_stop_while_a_receiver_is_down_is_not_the_last_word(listener: Listener) -> None:
    """What a stopped workflow gave up on is sent when it is resumed, under the same key; no step runs again."""
    listener.statuses = [503]
    sink = Sink(to="webhook", url=listener.url, required=True, backoff=Backoff(base_s=60, jitter=0))
    with daemon_for(listener) as daemon, daemon.client() as otto:
        agent(daemon, "planner", {"text": "build the bridge"})
        session = start(daemon, otto, planned(sink))
        wait_for("it has failed once", lambda: [e for e in session.journal() if isinstance(e, j.DeliveryFailed)])
        session.stop()
        result = session.wait(timeout_s=60)
        assert result.cause is not None and result.cause.code == "undelivered"
        again = session.resume()
        result = again.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        assert len(listener.got) == 2 and len(set(listener.keys)) == 1 and not ended(again)
        (sent,) = otto.artifact("ticket", session=session.id).deliveries
        assert (sent.state, sent.attempts) == ("delivered", 1)


def test_the_branch_of_a_resumed_workflow_goes_on(daemon: RealDaemon) -> None:
    """From the ended one's: it has the commits of all steps, each with what that step changed."""
    repository(daemon.workdir)
    worker(daemon, "coder", "echo new > added.txt")
    agent(daemon, "planner", {"error": {"status": 400}})
    spec = workflow(
        "sequential",
        step("code", "coder"),
        step("plan", "planner", outputs=(Output(name="ticket", capture="answer"),)),
        git_branch=True,
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        assert not session.wait(timeout_s=60).ok
        agent(daemon, "planner", {"text": "the plan"})
        again = session.resume()
        result = again.wait(timeout_s=60)
        assert result.ok, (result.cause, result.result)
        log = git(daemon.workdir, "log", "--format=%s", f"otto/{again.id}").splitlines()
        assert log == ["plan of flow", "code of flow", "first"]
        assert git(daemon.workdir, "diff", "--name-only", "HEAD", f"otto/{again.id}") == "added.txt"


def test_sqlite_has_index_and_contents(daemon: RealDaemon) -> None:
    """In a file that has other tables as well, once each, however many runs."""
    agent(daemon, "planner", {"text": "build the bridge"})
    file = daemon.workdir / "data/project.db"
    file.parent.mkdir()
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with daemon.client() as otto:
        sessions = []
        for _ in range(2):
            sessions.append(start(daemon, otto, planned(Sink(to="sqlite", path="data/project.db", required=True))))
            result = sessions[-1].wait(timeout_s=60)
            assert result.ok, result.cause
        known = {otto.artifact("ticket", session=s.id).artifact for s in sessions}
    with sqlite3.connect(file) as connection:
        rows = connection.execute(
            "SELECT artifact, name, version, kind, step, content"
            " FROM otto_artifacts JOIN otto_contents USING (digest)"
        ).fetchall()
        assert {row[0] for row in rows} == known and len(rows) == 2
        assert all(row[1:] == ("ticket", 1, "ticket", "plan", b"build the bridge") for row in rows)
        assert connection.execute("SELECT count(*) FROM otto_contents").fetchone() == (1,)
    connection.close()


def test_a_webhook_is_signed_tried_again_and_known_by_its_key(listener: Listener) -> None:
    """The same body with the same key each time; the secret is nowhere."""
    listener.statuses = [503, 429]
    sink = Sink(to="webhook", name="tracker", url=listener.url, secret="hook", backoff=SOON, required=True)
    with daemon_for(listener) as daemon, daemon.client() as otto:
        agent(daemon, "planner", {"text": "build the bridge"})
        session = start(daemon, otto, planned(sink))
        result = session.wait(timeout_s=60)
        assert result.ok, result.cause
        info = otto.artifact("ticket", session=session.id)
        assert listener.keys == [f"tracker/{info.artifact}@1"] * 3
        headers, body = listener.got[0]
        assert all(each == body for _, each in listener.got)
        assert headers["otto-signature"] == "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        said = json.loads(body)
        assert said["artifact"]["digest"] == info.digest and said["step"]["session"] == info.session
        assert said["content"] == {"encoding": "utf-8", "data": "build the bridge", "truncated": False}
        tried = [e for e in session.journal() if isinstance(e, j.DeliveryFailed)]
        assert [(e.attempt, e.failure.code, e.is_final) for e in tried] == [
            (1, "http_503", False),
            (2, "http_429", False),
        ]
        (sent,) = info.deliveries
        assert (sent.state, sent.attempts, sent.place) == ("delivered", 3, listener.url)
        shown = ottoctl(daemon, "artifact", "where", "ticket")
        assert "tracker" in shown.stdout and "delivered" in shown.stdout and listener.url in shown.stdout, shown
        everything = [p for p in files_below(daemon.base) if p.name != "otto.yml"]
        assert not [p for p in everything if SECRET.encode() in content(p)]


def test_what_cannot_be_delivered_is_said_and_fails_what_requires_it(listener: Listener) -> None:
    """A refusal is final, a redirect is not followed, a dead peer is given up on; the rest goes on."""
    listener.statuses = [400, 307]
    with daemon_for(listener) as daemon, daemon.client() as otto:
        agent(daemon, "planner", {"text": "build the bridge"})
        refused = Sink(to="webhook", name="refused", url=listener.url, required=True)
        session = start(daemon, otto, planned(refused))
        result = session.wait(timeout_s=60)
        assert result.cause is not None and result.cause.code == "undelivered" and "refused" in result.cause.message
        session = start(daemon, otto, planned(Sink(to="webhook", name="moved", url=listener.url)))
        assert session.wait(timeout_s=60).ok and len(listener.got) == 2
        listener.hold.clear()
        stuck = Sink(to="webhook", name="stuck", url=listener.url, timeout_s=0.2, attempts=3, backoff=SOON)
        files = Sink(to="filesystem", path="docs")
        session = start(daemon, otto, planned(stuck, files))
        assert session.wait(timeout_s=60).ok and (daemon.workdir / "docs/ticket").exists()
        tried = [e for e in session.journal() if isinstance(e, j.DeliveryFailed)]
        assert [(e.attempt, e.failure.code, e.is_final) for e in tried] == [
            (1, "timeout", False),
            (2, "timeout", False),
            (3, "timeout", True),
        ]
        # The end does not wait for ever, and a workflow that is stopped does not wait at all.
        long = Sink(to="webhook", name="long", url=listener.url, timeout_s=300, patience_s=0.3)
        session = start(daemon, otto, planned(long))
        assert session.wait(timeout_s=60).ok
        assert [e.failure.code for e in session.journal() if isinstance(e, j.DeliveryFailed)] == ["gave_up"]
        before = len(listener.got)
        session = start(daemon, otto, planned(msgspec.structs.replace(long, patience_s=300, required=True)))
        wait_for("it is on its way", lambda: len(listener.got) > before)
        wait_for("nothing else is left to do", lambda: ended(session))
        assert not session.stop(grace_s=60).remaining_pids
        assert [e.failure.code for e in session.journal() if isinstance(e, j.DeliveryFailed)] == ["cancelled"]
        # Nor does one whose time is up: it has failed no step, and is over soon.
        late = msgspec.structs.replace(long, patience_s=300, required=True)
        session = start(daemon, otto, planned(late, budgets=Budgets(seconds=10)))
        result = session.wait(timeout_s=60)
        assert result.cause is not None and result.cause.code == "undelivered", result
        assert [e.failure.code for e in session.journal() if isinstance(e, j.DeliveryFailed)] == ["budget"]
        elsewhere = planned(Sink(to="webhook", url="http://192.0.2.1/hook"))
        with pytest.raises(OttoError, match="may not go to"):
            start(daemon, otto, elsewhere)


def everywhere(listener: Listener) -> WorkflowSpec:
    return planned(
        Sink(to="filesystem", path="docs", required=True),
        Sink(to="sqlite", path="otto.db", required=True),
        Sink(to="webhook", url=listener.url, required=True, backoff=SOON),
        Sink(to="git_branch", required=True),
    )


def users_planner(daemon: RealDaemon) -> None:
    """The user's own: a project's agent may not name the variable."""
    directory = daemon.base / "config/agents"
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "planner.script"
    script.write_text(json.dumps({"turns": [{"text": "build the bridge"}]}))
    said = {"name": "planner", "model": f"scripted:{script}", "env": [WORKFLOW_VARIABLE]}
    (directory / "planner.yml").write_text(json.dumps(said))


def check_everywhere(daemon: RealDaemon, directory: Path, session: SyncSession, artifact: ArtifactInfo) -> None:
    """Each sink has the artifact, and none has it twice."""
    assert (directory / "docs/ticket").read_text() == "build the bridge"
    with sqlite3.connect(directory / "otto.db") as connection:
        assert connection.execute("SELECT artifact FROM otto_artifacts").fetchall() == [(artifact.artifact,)]
    connection.close()
    log = git(directory, "log", "--format=%(trailers:key=Otto-Artifact,valueonly,separator=;)", f"otto/{session.id}")
    assert log.splitlines() == [f"{artifact.artifact} ticket@1"], "below it is the user's own commit"
    assert [(each.sink, each.state) for each in artifact.deliveries] == [
        (name, "delivered") for name in ("filesystem", "git_branch", "sqlite", "webhook")
    ]


@pytest.mark.parametrize("point", ["written", pytest.param("synced", marks=pytest.mark.long)])
def test_a_worker_killed_at_any_record_delivers_all_and_nothing_twice(listener: Listener, point: str) -> None:
    """The places are those from the step's end to the workflow's; what is there twice is known by its key."""
    with daemon_for(listener, OTTO_FAILPOINTS="1") as daemon, daemon.client(timeout_s=120) as otto:
        users_planner(daemon)

        def begin(place: tuple[str, int] | None = None) -> tuple[SyncSession, Path]:
            directory = daemon.workdir / ("life" if place is None else f"life-{place[1]}")
            directory.mkdir()
            repository(directory)
            env = {"PATH": daemon.env["PATH"]}
            if place is not None:
                env[WORKFLOW_VARIABLE] = f"1:{place[0]}:{place[1]}"
            return otto.start_workflow(spec=everywhere(listener), task="go", cwd=directory, env=env), directory

        session, directory = begin()
        assert session.wait(timeout_s=60).ok
        check_everywhere(daemon, directory, session, otto.artifact("ticket", session=session.id))
        entries = session.journal()
        begins = next(n for n, entry in enumerate(entries) if isinstance(entry, j.StepEnded))
        assert sum(isinstance(entry, j.Delivered) for entry in entries) == 4
        places = [(point, record) for record in range(begins, len(entries))]
        killed = 0
        for session, directory in [begin(place) for place in places]:
            result = session.wait(timeout_s=90)
            assert result.ok, (directory.name, result.cause)
            info = otto.artifact("ticket", session=session.id)
            check_everywhere(daemon, directory, session, info)
            assert listener.keys.count(f"webhook/{info.artifact}@1") in (1, 2)
            bodies = {body for headers, body in listener.got if info.artifact in headers["idempotency-key"]}
            assert len(bodies) == 1
            killed += session.info().incarnation > 1
        assert killed >= len(places) - 2


def test_a_delivery_under_way_survives_root_and_worker(listener: Listener) -> None:
    """Both are killed while the receiver holds the request: it is sent again with the same key, and told once."""
    listener.hold.clear()
    with daemon_for(listener) as daemon:
        agent(daemon, "planner", {"text": "build the bridge"})
        with daemon.client(timeout_s=120) as otto:
            session = start(daemon, otto, planned(Sink(to="webhook", url=listener.url, required=True, backoff=SOON)))
            wait_for("it is on its way", lambda: listener.got)
            victim = identify(session.info().pid)
            daemon.kill()
            assert victim is not None and send_signal(victim, signal.SIGKILL)
        listener.hold.set()
        daemon.start()
        with daemon.client(timeout_s=120) as otto:
            again = otto.session(session.id)
            result = again.wait(timeout_s=90)
            assert result.ok, result.cause
            assert len(listener.got) == 2 and len(set(listener.keys)) == 1
            told = [e for e in again.journal() if isinstance(e, j.Delivered)]
            assert len(told) == 1 and otto.artifact("ticket", session=session.id).deliveries


PROGRAM = """
import json, os, urllib.request

def deliver(parcel):
    assert "HOOK" not in str(os.environ) and parcel["secrets"]["hook"] not in str(os.environ)
    title = parcel["artifact"]["name"] + " for " + parcel["options"]["board"]
    body = json.dumps({"title": title, "body": parcel["content"]["data"]}).encode()
    headers = {"Authorization": "Bearer " + parcel["secrets"]["hook"], "Idempotency-Key": parcel["delivery"]}
    if parcel["options"]["board"] == "nowhere":
        raise SystemExit("there is no such board")
    print("noise")
    request = urllib.request.Request(parcel["options"]["url"], data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return parcel["options"]["url"] + "/issues/7"
"""


def test_a_sink_of_ones_own_is_a_program_with_the_network_and_its_secrets(listener: Listener) -> None:
    """It is the user's; it says where the artifact is, or why not; it is tried again unless it says not to."""
    listener.statuses = [500]
    with daemon_for(listener) as daemon, daemon.client() as otto:
        sinks = daemon.base / "config/sinks"
        sinks.mkdir(parents=True)
        (sinks / "board.py").write_text(PROGRAM)
        agent(daemon, "planner", {"text": "build the bridge"})

        def board(name: str) -> Sink:
            options = {"board": name, "url": listener.url}
            return Sink(to="program", program="board", options=options, secrets=("hook",), backoff=SOON)

        session = start(daemon, otto, planned(board("team")))
        result = session.wait(timeout_s=60)
        assert result.ok, result.cause
        info = otto.artifact("ticket", session=session.id)
        (sent,) = info.deliveries
        assert (sent.state, sent.place, sent.attempts) == ("delivered", f"{listener.url}/issues/7", 2), sent
        headers, body = listener.got[-1]
        assert headers["authorization"] == f"Bearer {SECRET}"
        assert headers["idempotency-key"] == f"program/{info.artifact}@1"
        assert json.loads(body) == {"title": "ticket for team", "body": "build the bridge"}
        session = start(daemon, otto, planned(board("nowhere")))
        assert session.wait(timeout_s=60).ok
        (failed,) = [e for e in session.journal() if isinstance(e, j.DeliveryFailed)]
        assert failed.is_final and failed.failure.message == "there is no such board"
        with pytest.raises(OttoError, match="no sink 'bord' of yours"):
            start(daemon, otto, planned(Sink(to="program", program="bord")))


def test_an_answer_is_kept_whole(daemon: RealDaemon) -> None:
    """However long; and whoever gave it is its producer, with the step's inputs as what it was made from."""
    long = "a line of an answer that is long\n" * 4000
    agent(daemon, "planner", {"text": long})
    agent(daemon, "builder", {"text": "as planned\n" + long})
    spec = workflow(
        "sequential",
        step("plan", "planner", outputs=(Output(name="design", capture="answer"),)),
        step("build", "builder", inputs=("design",), outputs=(Output(name="note", capture="answer"),)),
    )
    with daemon.client() as otto:
        session = start(daemon, otto, spec)
        result = session.wait(timeout_s=60)
        assert result.ok, result.cause
        plan, build = ended(session)
        design, note = (otto.artifact(name, session=session.id) for name in ("design", "note"))
        assert otto.read_artifact(design).decode() == long
        assert otto.read_artifact(note).decode() == "as planned\n" + long
        assert (design.session, design.agent, design.step) == (plan.session, "planner", "plan")
        assert (note.session, note.step, note.sources) == (build.session, "build", (design.artifact,))


class Tracker(ThreadingHTTPServer):
    """A small issue tracker: it makes issues, finds them by their text, and knows who may."""

    def __init__(self) -> None:
        self.issues: list[dict[str, str]] = []
        tracker = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = parse_qs(urlsplit(self.path).query)["search"][0]
                self.answer([issue for issue in tracker.issues if wanted in issue["body"]])

            def do_POST(self) -> None:
                said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said["url"] = f"{tracker.url}/issues/{len(tracker.issues) + 1}"
                tracker.issues.append(said)
                self.answer(said)

            def answer(self, said: Any) -> None:
                body = json.dumps(said).encode()
                is_known = self.headers["Authorization"] == f"Bearer {SECRET}"
                self.send_response(200 if is_known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


def test_the_sink_that_the_documentation_shows_makes_an_issue_once() -> None:
    """The page's program as it stands, against a tracker; what comes again finds its issue."""
    (block,) = [b for b in blocks(ROOT / "docs/how-to/send-artifacts-on.md") if "def deliver" in b.text]
    settings = {"sinks": {"secrets": ["tracker-key"]}, "secrets": {"tracker-key": {"env": "TRACKER_KEY"}}}
    with running_daemon(settings, {"TRACKER_KEY": SECRET}) as daemon, Tracker() as tracker, daemon.client() as otto:
        serving = threading.Thread(target=tracker.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        try:
            sinks = daemon.base / "config/sinks"
            sinks.mkdir(parents=True)
            (sinks / "issues.py").write_text(block.text)
            agent(daemon, "planner", {"text": "build the bridge"})
            options = {"api": tracker.url, "repository": "team/bridge"}
            sink = Sink(to="program", program="issues", options=options, secrets=("tracker-key",), required=True)
            again = Sink(to="program", program="issues", options=options, required=True, attempts=1)
            session = start(daemon, otto, planned(sink))
            result = session.wait(timeout_s=60)
            assert result.ok, result.cause
            (issue,) = tracker.issues
            artifact = otto.artifact("ticket", session=session.id)
            assert issue["title"] == "ticket of flow" and issue["body"].startswith("build the bridge")
            assert [each.place for each in artifact.deliveries] == [issue["url"]]
            # The same parcel once more, as after a crash: the program looks before it makes one.
            parcel = {
                "options": options,
                "secrets": {"tracker-key": SECRET},
                "delivery": f"program/{artifact.artifact}@1",
            }
            names: dict[str, Any] = {}
            exec(compile(block.text, "issues.py", "exec"), names)
            assert names["deliver"](parcel) == issue["url"] and len(tracker.issues) == 1
            # Without the secret it is told so, and what requires it fails.
            refused = start(daemon, otto, planned(again)).wait(timeout_s=60)
            assert refused.cause is not None and refused.cause.code == "undelivered"
        finally:
            tracker.shutdown()
            serving.join()
