"""One ZeroMQ connection to the daemon: a DEALER socket, and the monitor that tells when it breaks.

A link is used until it breaks, and never again: libzmq's own reconnection is off. A new link is a new peer to the
daemon, so nothing that was meant for the old one can reach it out of order.
"""

from __future__ import annotations

import zmq

from ottod.errors import UnreachableError

_BROKEN_EVENTS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
MAX_OUTGOING_MESSAGES = 10_000
DRAIN_MESSAGES = 256
"""At most this many messages are received in one go, so that a flood does not starve the loop's other work."""


NEVER_MS = 3_600_000
"""Longer than any link lives once it is broken."""


class Link:
    """Not thread-safe; never blocks. Both file descriptors are edge-triggered, as libzmq's are: after one is
    readable, and after every send, read until there is nothing left (`drain` says when)."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self._monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._is_broken = False
        try:
            self._socket.setsockopt(zmq.LINGER, 0)
            # Whoever holds the link makes a new one when this one breaks. Switching reconnection off altogether would
            # make ZeroMQ drop what has arrived and was not yet read.
            self._socket.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
            self._socket.setsockopt(zmq.SNDHWM, MAX_OUTGOING_MESSAGES)
            # Credit bounds what the daemon may send ahead; a second bound here could only lose messages.
            self._socket.setsockopt(zmq.RCVHWM, 0)
            self._monitor.setsockopt(zmq.LINGER, 0)
            address = f"inproc://link-{id(self)}"
            self._socket.monitor(address, _BROKEN_EVENTS)
            self._monitor.connect(address)
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UnreachableError(f"cannot connect to {endpoint}: {error}") from error
        self.fd = _number(self._socket, zmq.FD)
        self.monitor_fd = _number(self._monitor, zmq.FD)

    @property
    def is_broken(self) -> bool:
        """The daemon closed the connection, or died."""
        if not self._is_broken:
            try:
                while _number(self._monitor, zmq.EVENTS) & zmq.POLLIN:
                    self._monitor.recv_multipart(zmq.NOBLOCK)
                    self._is_broken = True
            except zmq.ZMQError:
                self._is_broken = True
        return self._is_broken

    def send(self, frame: bytes) -> bool:
        """False when the line is full: try again after the next drain."""
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def drain(self) -> tuple[list[list[bytes]], bool]:
        """Up to DRAIN_MESSAGES messages, and whether there may be more already."""
        messages: list[list[bytes]] = []
        receive = self._socket.recv_multipart
        try:
            while len(messages) < DRAIN_MESSAGES:
                messages.append(receive(zmq.NOBLOCK))
        except zmq.Again:
            return messages, False
        return messages, True

    def wait_input(self, timeout_s: float) -> None:
        """Blocks until something arrives, the link breaks or the time is up."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        poller.poll(int(timeout_s * 1000) + 1)

    @property
    def has_input(self) -> bool:
        return bool(_number(self._socket, zmq.EVENTS) & zmq.POLLIN)

    def close(self) -> None:
        """Idempotent."""
        if not self._socket.closed:
            try:
                self._socket.disable_monitor()
            except zmq.ZMQError:
                pass
            self._socket.close(0)
        self._monitor.close(0)


def _number(socket: zmq.Socket[bytes], option: int) -> int:
    value = socket.getsockopt(option)
    assert isinstance(value, int)
    return value
