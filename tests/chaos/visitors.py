"""Clients that come and go: some stall, some die, some come late and read everything that is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import defaultdict
from typing import Protocol

from ottod.ids import session_id
from ottod.protocol.control import GapNotice, Grant, Reply, Request, SubscriptionEnded
from ottod.protocol.events import Gap
from ottod.protocol.records import split_run
from ottod.protocol.requests import Subscribe
from ottod.protocol.results import Subscribed
from tests.chaos.line import Line
from tests.chaos.witness import Witness

CREDIT_BYTES = 1024 * 1024
PATIENCE_S = 60.0


class Visitor(Protocol):
    """Somebody who is there for a while."""

    def pump(self, now_s: float) -> bool:
        """Does its part; False when it has left."""

    def leave(self) -> None:
        """Gone, at once."""


class Staller:
    """Subscribes to everything with as much credit as it can get, and never reads a byte of it."""

    def __init__(self, line: Line, until_s: float) -> None:
        self._line = line
        self._until_s = until_s
        self._is_stalled = False
        line.dial()

    def pump(self, now_s: float) -> bool:
        if not self._is_stalled:
            self._line.drain()
            if self._line.is_open:
                for number in range(4):
                    body = Subscribe(from_offset=0, credit_bytes=8 * CREDIT_BYTES)
                    self._line.send(Request(id=number, body=body))
                self._is_stalled = True
        if now_s < self._until_s:
            return True
        self.leave()
        return False

    def leave(self) -> None:
        self._line.hang_up()


class DyingClient:
    """The real command line, following everything, killed in the middle of it."""

    def __init__(self, env: dict[str, str], session: str, until_s: float) -> None:
        self._until_s = until_s
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ottoctl", "logs", "-f", session],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def pump(self, now_s: float) -> bool:
        if now_s < self._until_s:
            return True
        self.leave()
        return False

    def leave(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class LateReader:
    """Reads all that is left from offset 0, as it is now; the witness says whether that is the truth."""

    def __init__(self, line: Line, witness: Witness, name: str, now_s: float) -> None:
        self._line = line
        self._witness = witness
        self._name = name
        self._until_s = now_s + PATIENCE_S
        self._generation = -1
        self._subscription = -1
        self._seen: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._gaps: list[Gap] = []
        self._head = 0
        self.is_done = False
        line.dial()

    def pump(self, now_s: float) -> bool:
        messages = self._line.drain()
        if self._line.is_open and self._generation < 0:
            self._generation = self._line.generation
            body = Subscribe(from_offset=0, follow=False, credit_bytes=CREDIT_BYTES)
            self._line.send(Request(id=1, body=body))
        elif self._generation >= 0 and self._line.generation != self._generation:
            self.leave()  # Root died meanwhile: this reader keeps no cursor.
            return False
        for message in messages:
            if isinstance(message, tuple):
                self._run(message[1])
            elif isinstance(message, Reply) and isinstance(message.result, Subscribed):
                self._subscription, self._head = message.result.subscription, message.result.head
            elif isinstance(message, GapNotice):
                self._gaps.append(message.gap)
            elif isinstance(message, SubscriptionEnded):
                self.is_done = message.reason == "caught_up"
        # The witness must have got as far before it can judge.
        if self.is_done and self._witness.cursor >= self._head:
            self._witness.compare(self._name, self._seen, self._gaps, self._head)
            self.leave()
            return False
        if now_s > self._until_s:
            self.leave()
            return False
        return True

    def _run(self, run: bytes) -> None:
        for header, _ in split_run(run):
            self._seen[session_id(header.session_key)].append((header.first_offset, header.last_offset))
        self._line.send(Grant(subscription=self._subscription, bytes=len(run)))

    def leave(self) -> None:
        self._line.hang_up()
