"""One connection to the daemon by hand, without waiting: it knows when it was cut off, and hides nothing.

The client library would mend much of what must be seen here: it resumes, drops what came twice and repeats requests.
"""

from __future__ import annotations

import zmq

from ottoctl.endpoint import read_token
from ottod.errors import OttoError
from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import (
    KIND_RECORDS,
    ClientMessage,
    Hello,
    Rejected,
    ServerMessage,
    Welcome,
    client_messages,
    server_messages,
)

MAX_DRAIN = 500
"""Messages taken in one go, so that one line does not keep the loop from the others."""
Records = tuple[int, bytes]
"""A subscription's number and a run of records."""


class Line:
    """A DEALER socket that greets. `generation` grows whenever what was asked before is lost."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, name: str) -> None:
        self._context = context
        self._endpoint = endpoint
        self._name = name
        self.socket: zmq.Socket[bytes] | None = None
        self.is_open = False
        self.generation = 0
        self.instance = ""

    def dial(self) -> None:
        """Connects and greets; the answer comes with `drain`."""
        self.hang_up()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        # The kernel's and the library's buffers stay small, so that a line that nobody reads really stalls.
        self.socket.setsockopt(zmq.RCVHWM, 100)
        self.socket.connect(self._endpoint)
        self._greet()

    def hang_up(self) -> None:
        """Gone without a word."""
        self.is_open = False
        self.generation += 1
        if self.socket is not None:
            self.socket.close(linger=0)
            self.socket = None

    def _greet(self) -> None:
        self.is_open = False
        try:
            token = read_token(self._endpoint)
        except (OSError, OttoError):
            token = ""  # The daemon is just being born or dying; it will refuse, and we greet again.
        self.send(Hello(protocol=PROTOCOL_VERSION, client=self._name, version="0", token=token))

    def send(self, message: ClientMessage) -> None:
        """Puts a message on the line; without one it is lost, as on any line."""
        if self.socket is not None:
            self.socket.send(client_messages.encode(message), zmq.NOBLOCK)

    def drain(self) -> list[ServerMessage | Records]:
        """What has arrived, in order. Greetings are dealt with here."""
        arrived: list[ServerMessage | Records] = []
        while self.socket is not None and len(arrived) < MAX_DRAIN:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if frames[0][:1] == KIND_RECORDS:
                arrived.append((int.from_bytes(frames[0][1:], "big"), frames[1]))
                continue
            message = server_messages.decode(frames[1])
            if isinstance(message, Welcome):
                self.is_open, self.instance = True, message.instance
                self.generation += 1
                # What came before belongs to a subscription that is no more.
                arrived.clear()
            elif isinstance(message, Rejected) and message.failure.code == "hello_required" and self.is_open:
                self._greet()
            arrived.append(message)
        return arrived
