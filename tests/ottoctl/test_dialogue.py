"""The client's half of the protocol: how much is asked at once, and what is asked again of a daemon that vanished."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from ottoctl.calls import MAX_SENT, Call
from ottoctl.dialogue import Dialogue, OutcomeUnknownError
from ottod.errors import Failure
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol import requests as r
from ottod.protocol.control import KIND_MESSAGE, Reply, Request, Welcome, client_messages, server_messages
from ottod.protocol.results import Done
from ottod.root.control_gate import MAX_PENDING
from tests.protocol.test_golden import SAMPLES

REPEATED = {
    r.CheckpointSession,
    r.ExplainPolicy,
    r.GetArtifact,
    r.GetCost,
    r.GetDefinition,
    r.GetMetrics,
    r.GetSession,
    r.GetStatus,
    r.KillSession,
    r.ListApprovals,
    r.ListArtifacts,
    r.ListAudit,
    r.ListDefinitions,
    r.ListGrants,
    r.ListProviders,
    r.ListResearch,
    r.ListSessions,
    r.PauseSession,
    r.Ping,
    r.QueryDecisions,
    r.ReadArtifact,
    r.ReadJournal,
    r.ReloadDaemon,
    r.ResolveApproval,
    r.StopSession,
    r.Subscribe,
    r.UnpauseSession,
    r.WaitSession,
}
"""Twice is as good as once."""
ONCE = {
    r.ForgetDecisions,
    r.ForgetResearch,
    r.InterruptSession,
    r.RemoveSession,
    r.RevokeGrant,
    r.RollBackSession,
    r.SendInput,
    r.StopDaemon,
    r.UnparkSession,
    r.Unsubscribe,
    r.UpgradeDaemon,
}
"""A second time does something else, or says that there was nothing to do."""
BY_KEY = {r.ForkSession, r.ResumeSession, r.StartSession, r.UpdateNotes}
"""The daemon knows a key again; without one it would start another session."""


def sample(kind: type) -> Any:
    return SAMPLES[f"request/{kind.__struct_config__.tag}"]  # type: ignore[attr-defined]


def test_each_request_is_of_one_sort() -> None:
    """Whoever adds a request decides whether it may be made twice."""
    assert set(get_args(r.RequestBody)) == REPEATED | ONCE | BY_KEY
    assert not REPEATED & ONCE and not REPEATED & BY_KEY and not ONCE & BY_KEY
    assert {kind for kind in REPEATED if not Call(sample(kind)).is_repeatable} == set()
    assert {kind for kind in ONCE if Call(sample(kind)).is_repeatable} == set()
    assert {kind for kind in BY_KEY if Call(replace(sample(kind), key="")).is_repeatable} == set()
    assert {kind for kind in BY_KEY if not Call(replace(sample(kind), key="k")).is_repeatable} == set()


@pytest.mark.parametrize("body", [r.RollBackSession(session="s-1", turns=1), r.InterruptSession(session="s-1")])
def test_what_would_be_done_twice_is_not_asked_again(body: r.RequestBody) -> None:
    """Another turn forgotten, another turn interrupted: the outcome is unknown, and the caller is told."""
    dialogue = opened()
    call, first = dialogue.ask(body), sent(dialogue)
    assert [type(message.body) for message in first] == [type(body)]
    dialogue.link_down()
    begin(dialogue, "i-2")
    assert sent(dialogue) == []
    assert isinstance(call.error, OutcomeUnknownError)


def test_no_more_is_asked_at_once_than_the_daemon_takes() -> None:
    """What is beyond its bound would be refused. It goes out as answers come, in order, each exactly once."""
    dialogue = opened()
    calls = [dialogue.ask(r.StopSession(session=f"s-{number}")) for number in range(1000)]
    open_requests, seen, most = sent(dialogue), [], 0
    while open_requests:
        most = max(most, len(open_requests))
        request = open_requests.pop(len(open_requests) // 2)
        seen.append(request.body)
        answer(dialogue, request)
        open_requests += sent(dialogue)
    assert most < MAX_PENDING
    assert all(call.result is not None for call in calls)
    assert sorted(map(id_of, seen)) == list(range(1000))


def test_what_lasts_long_leaves_room_for_what_is_quick() -> None:
    """A stop gets past any number of waits, a question past any number of stops, a ping past any of these."""
    dialogue = opened()
    for kind, more in ((r.WaitSession, 1000), (r.StopSession, 1000), (r.GetSession, 1000)):
        for _ in range(more):
            dialogue.ask(kind(session="s-1"))
        assert any(isinstance(request.body, kind) for request in sent(dialogue))
    dialogue.ask(r.Ping())
    assert [type(request.body) for request in sent(dialogue)] == [r.Ping]
    assert max(MAX_SENT) < MAX_PENDING


def test_a_failure_and_a_caller_that_gave_up_make_room_as_well() -> None:
    """Of those that wait the most urgent is next; what nobody waits for any more is not sent."""
    dialogue = opened()
    waits = [dialogue.ask(r.WaitSession(session="s-1")) for _ in range(MAX_SENT[1] + 5)]
    for _ in range(MAX_SENT[1] - MAX_SENT[0]):
        dialogue.ask(r.StopSession(session="s-2"))
    first = sent(dialogue)
    assert len(first) == MAX_SENT[1]
    late = dialogue.ask(r.KillSession(session="s-3"))
    assert sent(dialogue) == []
    failure = Failure(code="no_such_session", message="gone")
    dialogue.receive([KIND_MESSAGE, server_messages.encode(Reply(id=first[0].id, failure=failure))])
    assert [request.body for request in sent(dialogue)] == [r.KillSession(session="s-3")]
    dialogue.abandon(late, *waits)
    assert sent(dialogue) == []
    dialogue.ask(r.WaitSession(session="s-4"))
    assert [request.body for request in sent(dialogue)] == [r.WaitSession(session="s-4")]


def test_the_next_daemon_is_not_asked_too_much_either() -> None:
    """What was on its way is asked again; what waited goes on waiting for room."""
    dialogue = opened()
    calls = [dialogue.ask(r.WaitSession(session="s-1")) for _ in range(300)]
    assert len(sent(dialogue)) == MAX_SENT[0]
    dialogue.link_down()
    calls += [dialogue.ask(r.WaitSession(session="s-1")) for _ in range(300)]
    begin(dialogue, "i-2")
    open_requests = sent(dialogue)
    assert len(open_requests) == MAX_SENT[0]
    while open_requests:
        answer(dialogue, open_requests.pop())
        open_requests += sent(dialogue)
    assert all(call.result is not None for call in calls)


def id_of(body: r.RequestBody) -> int:
    assert isinstance(body, r.StopSession)
    return int(body.session.removeprefix("s-"))


def answer(dialogue: Dialogue, request: Request) -> None:
    dialogue.receive([KIND_MESSAGE, server_messages.encode(Reply(id=request.id, result=Done()))])


def opened() -> Dialogue:
    """A dialogue with a daemon."""
    dialogue = Dialogue(client="test", version="1", pid=1)
    begin(dialogue, "i-1")
    return dialogue


def begin(dialogue: Dialogue, instance: str) -> None:
    """A link to a daemon that says welcome."""
    dialogue.link_up()
    welcome = Welcome(protocol=PROTOCOL_VERSION, version="1", instance=instance, pid=1)
    dialogue.receive([KIND_MESSAGE, server_messages.encode(welcome)])


def sent(dialogue: Dialogue) -> list[Request]:
    """The requests that want to be sent; forgets them."""
    messages = [client_messages.decode(frame) for frame in dialogue.outbox]
    dialogue.outbox.clear()
    return [message for message in messages if isinstance(message, Request)]
