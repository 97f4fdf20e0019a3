"""The client's half of the protocol: what is asked again of a daemon that vanished before it answered."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from ottoctl.dialogue import Call, Dialogue, OutcomeUnknownError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol import requests as r
from ottod.protocol.control import KIND_MESSAGE, Request, Welcome, client_messages, server_messages
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
    dialogue = Dialogue(client="test", version="1", pid=1)
    call, first = asked(dialogue, body), sent(dialogue)
    assert [type(message.body) for message in first] == [type(body)]
    dialogue.link_down()
    begin(dialogue, "i-2")
    assert sent(dialogue) == []
    assert isinstance(call.error, OutcomeUnknownError)


def asked(dialogue: Dialogue, body: r.RequestBody) -> Call:
    begin(dialogue, "i-1")
    return dialogue.ask(body)


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
