"""Requests that are not answered yet: those that were sent, and those that wait until the daemon has room for them.

The daemon has so many requests of one client in work at a time and refuses the others. So no more are sent than it
takes, and the next one when an answer comes. What may last long leaves room for what does not: beside any number of
waits a stop gets through, beside any number of stops a question.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator

from ottod.errors import OttoError
from ottod.protocol.requests import (
    ForgetDecisions,
    ForgetResearch,
    ForkSession,
    InterruptSession,
    KillSession,
    Ping,
    RemoveSession,
    RequestBody,
    ResumeSession,
    RevokeGrant,
    RollBackSession,
    SendInput,
    StartSession,
    StopDaemon,
    StopSession,
    UnparkSession,
    Unsubscribe,
    UpdateNotes,
    UpgradeDaemon,
    WaitSession,
)
from ottod.protocol.results import Result

ByKey = StartSession | ForkSession | ResumeSession | UpdateNotes
"""What starts a session: the daemon knows the key again."""
Once = (
    SendInput
    | InterruptSession
    | RollBackSession
    | UnparkSession
    | RemoveSession
    | RevokeGrant
    | ForgetDecisions
    | ForgetResearch
    | Unsubscribe
    | StopDaemon
    | UpgradeDaemon
)
"""What a second time would do to something else, or find nothing to do it to."""
MAX_SENT = (192, 224, 240, 244)
"""How many requests may be on their way for another one to be sent: a wait, one that ends something, any other one, a
ping. The daemon has 256 in work; the rest is for subscriptions."""


class Call:
    """One request on its way. Exactly one of `result` and `error` is set once it `is_done`."""

    __slots__ = ("_on_done", "body", "error", "result")

    def __init__(self, body: RequestBody, on_done: Callable[[], None] | None = None) -> None:
        self.body = body
        self.result: Result | None = None
        self.error: OttoError | None = None
        self._on_done = on_done

    @property
    def is_done(self) -> bool:
        return self.result is not None or self.error is not None

    @property
    def is_repeatable(self) -> bool:
        """Whether the daemon may meet the request twice without doing anything twice."""
        if isinstance(self.body, ByKey):
            return bool(self.body.key)
        return not isinstance(self.body, Once)

    @property
    def urgency(self) -> int:
        """Its place in MAX_SENT."""
        match self.body:
            case WaitSession():
                return 0
            case StopSession() | KillSession() | InterruptSession():
                return 1
            case Ping():
                return 3
            case _:
                return 2

    def finish(self, *, result: Result | None = None, error: OttoError | None = None) -> None:
        if self.is_done:
            return
        self.result, self.error = result, error
        if self._on_done is not None:
            self._on_done()


class Calls:
    """Of one dialogue. What waits is taken the most urgent first, and of the same urgency in the order it came."""

    def __init__(self) -> None:
        self._sent: dict[int, Call] = {}
        self._waiting: tuple[deque[Call], ...] = tuple(deque() for _ in MAX_SENT)

    def __len__(self) -> int:
        return len(self._sent) + sum(len(line) for line in self._waiting)

    def wait(self, call: Call) -> None:
        """Puts a call at the end of its line."""
        self._waiting[call.urgency].append(call)

    def ready(self) -> Iterator[Call]:
        """Takes out what there is room for, for as long as there is any; each must be `sent`, or finished."""
        for urgency in reversed(range(len(MAX_SENT))):
            line = self._waiting[urgency]
            while line and len(self._sent) < MAX_SENT[urgency]:
                yield line.popleft()

    def sent(self, number: int, call: Call) -> None:
        """It is on its way under this number."""
        self._sent[number] = call

    def answered(self, number: int) -> Call | None:
        """Takes out the call of this number, if somebody still waits for it."""
        return self._sent.pop(number, None)

    def lost(self) -> list[Call]:
        """Takes out all that were sent: their answers will not come any more."""
        calls = list(self._sent.values())
        self._sent.clear()
        return calls

    def clear(self) -> list[Call]:
        """Takes out all."""
        calls = self.lost()
        for line in self._waiting:
            calls += line
            line.clear()
        return calls

    def drop(self, calls: Container[Call]) -> None:
        """Forgets calls that nobody waits for any more."""
        self._sent = {number: call for number, call in self._sent.items() if call not in calls}
        self._waiting = tuple(deque(call for call in line if call not in calls) for line in self._waiting)
