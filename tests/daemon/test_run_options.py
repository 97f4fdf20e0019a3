"""What users of containers and units expect of `run` and `ps`: names, `--rm`, `--env`, filters; on one daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ottoctl.filters import filtered
from ottoctl.sync import SyncSession
from ottod.errors import OttoError
from ottod.protocol.requests import ListSessions
from tests.daemon.harness import RealDaemon, running_daemon, wait_for
from tests.daemon.test_cli_supervision import ottoctl

WAITS = {"stream": {"events": 100_000, "rate_hz": 1, "text_bytes": 1}}


@pytest.fixture(scope="module")
def daemon() -> Iterator[RealDaemon]:
    with running_daemon() as daemon:
        agents = daemon.workdir / ".otto/agents"
        agents.mkdir(parents=True)
        quick = daemon.script("quick", {"text": "done"})
        (agents / "quick.yml").write_text(f"model: {quick}\n")
        call = {"name": "shell", "arguments": {"command": "echo editor=$EDITOR"}}
        shows = daemon.script("shows", {"tools": [call]}, {"text": "${last_tool_result}"})
        (agents / "shows.yml").write_text(f"model: {shows}\ntools: [shell]\nenv: [EDITOR]\n")
        (agents / "waits.yml").write_text(f"model: {daemon.script('waits', WAITS)}\n")
        yield daemon


def refusal(code: str, start: object) -> OttoError:
    with pytest.raises(OttoError) as refused:
        start()  # type: ignore[operator]
    assert refused.value.code == code
    return refused.value


def test_a_name_stands_for_the_id_while_the_session_lives_and_afterwards(daemon: RealDaemon) -> None:
    """It is one session's; taken, it is refused; free again, it means the newest that had it."""
    with daemon.client() as otto:

        def start(name: str) -> SyncSession:
            return otto.start("waits", "go", cwd=daemon.workdir, name=name)

        first = start("nightly")
        assert otto.session("nightly").id == first.id and first.info().name == "nightly"
        taken = refusal("name_taken", lambda: start("nightly"))
        assert first.id in taken.message and "ottoctl stop nightly" in taken.mend
        for wrong in ("Nightly", "s-nightly", "user", "-x"):
            refusal("bad_name", lambda wrong=wrong: start(wrong))
        # What its letters would be the beginning of as an id does not matter: it was given on purpose.
        other = start("cafe")
        assert otto.session("cafe").id == other.id
        # A child that a client names is found by it from everywhere, too.
        child = otto.start("waits", "go", cwd=daemon.workdir, parent="nightly", name="below")
        assert {info.session for info in otto.list(tree="nightly")} == {first.id, child.id}
        assert [info.session for info in otto.list(name="be*")] == [child.id]
        # The agent's own name is no name in this sense, though nobody else has it.
        refusal("no_such_session", lambda: otto.session("waits"))
        listed = json.loads(ottoctl(daemon, "ps", "--filter", "parent=nightly", "-o", "json").stdout)
        assert [info["session"] for info in listed] == [child.id]
        stopped = ottoctl(daemon, "stop", "nightly", "cafe")
        assert stopped.stdout.split() == [first.id, other.id], stopped.stderr
        assert otto.session("nightly").id == first.id and otto.session("cafe").id == other.id
        second = start("nightly")
        assert otto.session("nightly").id == second.id
        second.kill()
        assert otto.session("nightly").id == second.id
        second.remove()
        assert otto.session("nightly").id == first.id
        unknown = refusal("no_such_session", lambda: otto.session("weekly"))
        assert "nor the name of a session" in unknown.message


def test_rm_forgets_what_a_run_left(daemon: RealDaemon) -> None:
    """The answer and the status are those of the run; what cannot work is refused before anything starts."""
    done = ottoctl(daemon, "run", "--rm", "--name", "gone", "quick", "go")
    assert done.returncode == 0 and done.stdout == "done\n"
    with daemon.client() as otto:
        refusal("no_such_session", lambda: otto.session("gone"))
        assert not otto.list(all=True, name="gone")
    refused = ottoctl(daemon, "run", "--rm", "--detach", "quick", "go")
    assert refused.returncode == 2 and "--detach" in refused.stderr and "ottoctl rm" in refused.stderr


def test_env_reaches_the_programs_of_tools_or_is_refused(daemon: RealDaemon) -> None:
    """Through the same list as all variables; what looks like a secret does not even leave the client."""
    given = ottoctl(daemon, "run", "--env", "EDITOR=ed", "shows", "go", EDITOR="vi")
    assert given.returncode == 0 and "editor=ed" in given.stdout, given.stderr
    refused = ottoctl(daemon, "run", "-e", "COLOUR=red", "shows", "go")
    assert refused.returncode == 5 and "shows takes no COLOUR" in refused.stderr and "env: [COLOUR]" in refused.stderr
    secret = ottoctl(daemon, "run", "-e", "API_TOKEN=abc", "shows", "go")
    assert secret.returncode == 2 and "looks like a secret" in secret.stderr and "abc" not in secret.stderr


def test_filters(daemon: RealDaemon) -> None:
    """State or outcome, agent, parent and name, alone and together; the limit counts what fits."""
    with daemon.client() as otto:
        running = otto.start("waits", "go", cwd=daemon.workdir, name="runs")
        wait_for("it runs", lambda: running.info().state == "running")
        ended = [otto.run("quick", "go", cwd=daemon.workdir).session for _ in range(3)]
        stopped = otto.start("waits", "go", cwd=daemon.workdir)
        stopped.kill()

        def ids(*filters: str) -> list[str]:
            return [info.session for info in otto.list_with(filtered(ListSessions(limit=4), filters)).sessions]

        assert ids("agent=wait*") == [running.id]
        assert set(ids("state=completed", "agent=quick")) >= set(ended)
        assert ids("state=cancelled", "agent=waits", "name=waits")[0] == stopped.id
        assert running.id in ids("state=running,cancelled") and stopped.id in ids("state=running,cancelled")
        assert ids("agent=quick", "name=runs") == []
        running.kill()
