"""Session trees: a stop goes through a whole tree in order, failures go up, a parent waits for its children."""

from __future__ import annotations

import signal

import pytest

from ottoctl.sync import SyncOtto, SyncSession
from ottod.errors import OttoError
from ottod.isolation.processes import identify, is_alive, send_signal
from ottod.protocol.events import ChildExited, ChildStarted, SessionExited
from ottod.protocol.requests import ListSessions
from ottod.protocol.specs import Limits, Restart
from tests.daemon.harness import RealDaemon, running_daemon, wait_for

STREAM = {"stream": {"events": 100_000, "rate_hz": 5, "text_bytes": 20}}


def start(daemon: RealDaemon, otto: SyncOtto, parent: str = "", **fields: object) -> SyncSession:
    spec = daemon.agent(daemon.script("stream", STREAM), **fields)
    return otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=parent)


def grow(daemon: RealDaemon, otto: SyncOtto, parent: str, *, levels: int, width: int) -> list[str]:
    """A tree below `parent`, in the order of starts, each session before those below it."""
    out = []
    for _ in range(width if levels else 0):
        child = start(daemon, otto, parent)
        out += [child.id, *grow(daemon, otto, child.id, levels=levels - 1, width=width)]
    return out


def ends(daemon: RealDaemon, session: str) -> list[SessionExited]:
    with daemon.client() as otto:
        found = [e.event for e in otto.session(session).events(follow=False)]
    return [e for e in found if isinstance(e, SessionExited)]


def test_a_stop_goes_through_the_tree_in_reverse_order(daemon: RealDaemon) -> None:
    """Four levels; every session ends after all below it, the newest first; each once, and nothing is left."""
    with daemon.client(timeout_s=120) as otto:
        top = start(daemon, otto)
        below = [*grow(daemon, otto, top.id, levels=1, width=4)]
        for child in below[:1]:
            below += grow(daemon, otto, child, levels=3, width=2)
        processes = [identify(otto.session(s).info().pid) for s in below]
        infos = {i.session: i for i in otto.list_with(ListSessions(tree=top.id)).sessions}
        assert set(infos) == {top.id, *below}
        result = top.stop(grace_s=100)
        assert not result.remaining_pids and result.proof
        order = {session: place for place, session in enumerate(result.stopped)}
        assert set(order) == {top.id, *below} and result.stopped[-1] == top.id
        for session, info in infos.items():
            if info.parent:
                assert order[session] < order[info.parent], "a child ended after its parent"
        for parent in infos:
            siblings = sorted((i for i in infos.values() if i.parent == parent), key=lambda i: i.created_at_ns)
            places = [order[i.session] for i in siblings]
            assert places == sorted(places, reverse=True), "the newest child ends first"
    assert not [p for p in processes if p is not None and is_alive(p)]
    assert all(len(ends(daemon, s)) == 1 for s in (top.id, *below[-3:]))


def test_a_deaf_tree_is_stopped_within_one_grace(daemon: RealDaemon) -> None:
    """Ten children that ignore everything share their parent's deadline: the stop does not take ten of them."""
    deaf = "import signal,time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"
    model = daemon.script(
        "deaf", {"tools": [{"name": "shell", "arguments": {"command": f'exec python3 -c "{deaf}"'}}]}
    )
    with daemon.client(timeout_s=120) as otto:
        top = start(daemon, otto)
        children = [
            otto.start(spec=daemon.agent(model, "shell"), task="go", cwd=daemon.workdir, parent=top.id)
            for _ in range(10)
        ]
        for child in children:
            wait_for("its tool runs", lambda c=child: c.info().current_tool == "shell")  # type: ignore[misc]
        result = top.stop(grace_s=1)
        assert len(result.stopped) == 11 and not result.remaining_pids
        assert all(c.info().state == "ended" for c in children)


def test_a_parent_that_dies_for_good_takes_its_children_along(daemon: RealDaemon) -> None:
    """on_parent_exit: `stop` children end before their parent does; a `keep` child lives on at the top."""
    with daemon.client() as otto:
        parent = start(daemon, otto)
        stopped = start(daemon, otto, parent.id)
        kept = start(daemon, otto, parent.id, restart=Restart(on_parent_exit="keep"))
        wait_for("all run", lambda: all(each.info().state == "running" for each in (parent, stopped, kept)))
        worker = identify(parent.info().pid)
        assert worker is not None
        send_signal(worker, signal.SIGKILL)
        assert parent.wait().cause.kind == "crashed"
        assert stopped.info().state == "ended" and kept.info().state == "running"
        assert kept.stop(grace_s=2).cause.kind == "cancelled"


def test_children_of_a_parent_that_comes_back_are_kept(daemon: RealDaemon) -> None:
    """A transient parent is killed: its child runs on in the same process, below the new incarnation."""
    with daemon.client() as otto:
        parent = start(daemon, otto, restart=Restart(policy="transient"))
        child = start(daemon, otto, parent.id)
        wait_for("both run", lambda: all(each.info().state == "running" for each in (parent, child)))
        pid, worker = child.info().pid, identify(parent.info().pid)
        assert worker is not None and send_signal(worker, signal.SIGKILL)
        wait_for("the parent is back", lambda: parent.info().incarnation == 2 and parent.info().state == "running")
        assert child.info().pid == pid and child.info().state == "running"
        assert parent.stop(grace_s=5).stopped == (child.id, parent.id)


def test_a_parent_hears_of_its_children(daemon: RealDaemon) -> None:
    """child.started and child.exited, with the cause, are in the parent's own stream."""
    with daemon.client() as otto:
        parent = start(daemon, otto)
        wait_for("it runs", lambda: parent.info().state == "running")
        spec = daemon.agent(daemon.script("brief", {"text": "ready"}))
        child = otto.start(spec=spec, task="go", cwd=daemon.workdir, parent=parent.id)
        assert child.wait().ok
        with daemon.client() as other:
            for event in other.session(parent.id).events(from_offset=0):
                if isinstance(event.event, ChildExited):
                    assert event.event.child == child.id and event.event.cause.kind == "completed"
                    break
        events = [e.event for e in otto.session(parent.id).events(follow=False)]
        assert [e.child for e in events if isinstance(e, ChildStarted)] == [child.id]
        parent.stop(grace_s=2)


def test_a_parent_waits_for_its_children(daemon: RealDaemon) -> None:
    """A one-shot session whose own work is done stays, in waiting_children, until its last child has ended."""
    with daemon.client() as otto:
        gate = daemon.script(
            "gate",
            {"tools": [{"name": "shell", "arguments": {"command": "while [ ! -e on ]; do sleep 0.05; done"}}]},
            {"text": "mine is done"},
        )
        parent = otto.start(spec=daemon.agent(gate, "shell"), task="go", cwd=daemon.workdir)
        wait_for("it runs", lambda: parent.info().current_tool == "shell")
        child = start(daemon, otto, parent.id)
        wait_for("the child runs", lambda: child.info().state == "running")
        (daemon.workdir / "on").touch()
        wait_for("it waits", lambda: parent.info().state == "waiting_children")
        child.stop(grace_s=2)
        result = parent.wait()
        assert result.ok and "mine is done" in result.result


@pytest.mark.parametrize(
    ("limits", "code"), [(Limits(max_children=1), "too_many_children"), (Limits(max_depth=1), "too_deep")]
)
def test_a_tree_has_bounds(daemon: RealDaemon, limits: Limits, code: str) -> None:
    """limits.max_children and max_depth are refused with their own codes."""
    with daemon.client() as otto:
        parent = start(daemon, otto, limits=limits)
        child = start(daemon, otto, parent.id, limits=limits)
        with pytest.raises(OttoError) as refused:
            start(daemon, otto, parent.id if code == "too_many_children" else child.id)
        assert refused.value.code == code
        parent.kill()


def test_a_dead_or_unknown_parent_is_refused(daemon: RealDaemon) -> None:
    """No session starts below one that has ended."""
    with daemon.client() as otto:
        parent = start(daemon, otto)
        parent.kill()
        with pytest.raises(OttoError) as refused:
            start(daemon, otto, parent.id)
        assert refused.value.code == "session_ended"
        with pytest.raises(OttoError):
            start(daemon, otto, "s-0000000000")


def test_a_tree_outlives_root() -> None:
    """kill -9 of root under a tree: all of it is adopted, and is stopped in order by the next root."""
    with running_daemon() as daemon:
        with daemon.client() as otto:
            top = start(daemon, otto)
            below = grow(daemon, otto, top.id, levels=2, width=2)
            wait_for("all run", lambda: all(otto.session(s).info().state == "running" for s in below))
            pids = {s: otto.session(s).info().pid for s in below}
        daemon.kill()
        daemon.start()
        with daemon.client() as otto:
            wait_for("all go on", lambda: all(otto.session(s).info().state == "running" for s in below))
            assert {s: otto.session(s).info().pid for s in below} == pids
            result = otto.session(top.id).stop(grace_s=20)
            assert set(result.stopped) == {top.id, *below} and result.stopped[-1] == top.id
