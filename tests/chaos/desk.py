"""Asks the daemon for things and insists on answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ottod.errors import Failure
from ottod.protocol.control import Reply, Request
from ottod.protocol.requests import RequestBody, WaitSession
from ottod.protocol.results import Result
from tests.chaos.findings import Findings
from tests.chaos.line import Line

ANSWER_S = 60.0
"""Of the time that root is up: the machine may be very busy, but an answer must come."""
MAX_PENDING = 500

OnAnswer = Callable[[Result | None, Failure | None], None]
"""Gets a result, or a failure, or neither: the connection was lost, and with it the outcome."""


class Ask:
    """A request on its way."""

    def __init__(self, body: RequestBody, on_answer: OnAnswer, limit_s: float, asked_s: float) -> None:
        self.body = body
        self.on_answer = on_answer
        self.limit_s = limit_s
        self.asked_s = asked_s


class Desk:
    """Its clock is `findings.up_s`, which counts only the time in which root could have answered."""

    def __init__(self, line: Line, findings: Findings) -> None:
        self._line = line
        self._findings = findings
        self._next_id = 1
        self._generation = -1
        self.pending: dict[int, Ask] = {}
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    @property
    def is_open(self) -> bool:
        """Whether something can be asked now."""
        return self._line.is_open and len(self.pending) < MAX_PENDING

    def ask(self, body: RequestBody, on_answer: OnAnswer, *, limit_s: float = ANSWER_S) -> bool:
        """Sends a request. False if there is nobody to ask."""
        if not self.is_open:
            return False
        number, self._next_id = self._next_id, self._next_id + 1
        self.pending[number] = Ask(body, on_answer, limit_s, self._findings.up_s)
        self.counts["asked"] += 1
        self._line.send(Request(id=number, body=body))
        return True

    def pump(self) -> int:
        """Takes answers; gives the number of messages."""
        messages = self._line.drain()
        if self._line.generation != self._generation:
            self._generation = self._line.generation
            self._lost()
        for message in messages:
            if isinstance(message, Reply) and (ask := self.pending.pop(message.id, None)) is not None:
                has_one = (message.result is None) != (message.failure is None)
                self._findings.check("answers", has_one, f"a reply with both or neither: {message}")
                self.counts["answered" if message.result is not None else "refused"] += 1
                if message.failure is not None:
                    self.refusals[message.failure.code] += 1
                ask.on_answer(message.result, message.failure)
        return len(messages)

    def _lost(self) -> None:
        """The connection is gone: what was pending has failed with it."""
        lost, self.pending = list(self.pending.values()), {}
        for ask in lost:
            self._findings.checks["answers"] += 1
            self.counts["lost with its connection"] += 1
            ask.on_answer(None, None)

    def check_hanging(self, ended_s: Callable[[str], float | None]) -> None:
        """Nothing may be pending for too long. A wait hangs if its session (see `ended_s`) ended long ago."""
        for number, ask in list(self.pending.items()):
            since_s = ask.asked_s
            if isinstance(ask.body, WaitSession):
                ended = ended_s(ask.body.session)
                if ended is None:
                    continue
                since_s = max(since_s, ended)
            if self._findings.up_s - since_s > ask.limit_s:
                del self.pending[number]
                self._findings.check("answers", False, f"no answer within {ask.limit_s:.0f} s: {ask.body}")
