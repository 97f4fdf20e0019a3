"""A raw ZeroMQ socket, driven through its file descriptor.

ZeroMQ's descriptor is edge-triggered: it becomes readable once when something happens, and any call on the socket
may swallow that edge. So after a send the socket's real state is looked at again: at once, or, where sending is
frequent and incoming messages can wait a moment, within `check_after_s`.
Receiving drains in bounded rounds, so that a busy socket cannot keep timers and signals waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Literal

import zmq
from zmq.backend import Socket as _Raw

BACKLOG = 4096
"""Connections that may wait to be accepted; the system's own limit applies too."""
DRAIN_MESSAGES = 256
"""Messages taken in one round before the loop gets its turn."""

# Plain integers: pyzmq's own are enum members, and combining two of those costs more than sending a message.
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)
_RCVMORE = int(zmq.RCVMORE)

Outcome = Literal["sent", "full", "gone"]
Handler = Callable[[list[bytes]], None]


class Socket:
    """One socket of one process's loop. Made, used and closed on the loop's thread."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        *,
        loop: asyncio.AbstractEventLoop,
        on_message: Handler,
        on_drained: Callable[[], None] | None = None,
        check_after_s: float = 0.0,
    ) -> None:
        self._socket = socket
        self._loop = loop
        self._on_message = on_message
        self._on_drained = on_drained
        self._check_after_s = check_after_s
        self._is_check_due = False
        # The methods of the class below pyzmq's Python layer: the same socket, without its keyword handling.
        self._send_frame = partial(_Raw.send, socket)
        self._get = partial(_Raw.get, socket)
        self._recv_frame = partial(_Raw.recv, socket)
        self._fd = int(socket.getsockopt(zmq.FD))
        loop.add_reader(self._fd, self._ready)
        self._check_soon()

    @property
    def is_closed(self) -> bool:
        return bool(self._socket.closed)

    def send(self, frames: list[bytes | memoryview]) -> bool:
        """Queues a message. False if the peer's queue is full or the peer is gone; nothing was sent then."""
        return self.try_send(frames) == "sent"

    def try_send(self, frames: list[bytes | memoryview]) -> Outcome:
        """The same, telling a peer that cannot take more now from one that is not there any more."""
        send = self._send_frame
        try:
            for frame in frames[:-1]:
                send(frame, _NOBLOCK_MORE)
            send(frames[-1], _NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return "gone"
            raise
        finally:
            # The call may have swallowed the edge that would have announced a message.
            if not self._is_check_due:
                if self._check_after_s:
                    self._is_check_due = True
                    self._loop.call_later(self._check_after_s, self._ready)
                elif self._has_input():
                    self._check_soon()
        return "sent"

    def is_reachable(self, identity: bytes) -> bool:
        """Whether a ROUTER still has a connection for `identity`.

        It loses it only after everything that the peer had sent has been received, so False proves that nothing
        of it is still on the way.
        """
        return self.try_send([identity, b""]) != "gone"

    def _has_input(self) -> bool:
        return bool(self._get(_EVENTS) & _POLLIN)  # type: ignore[operator]

    def _check_soon(self) -> None:
        if not self._is_check_due:
            self._is_check_due = True
            self._loop.call_soon(self._ready)

    def _ready(self) -> None:
        self._is_check_due = False
        get, recv = self._get, self._recv_frame
        for _ in range(DRAIN_MESSAGES):
            if self._socket.closed:
                return
            if not self._has_input():
                break
            frames = [recv(_NOBLOCK)]
            while get(_RCVMORE):
                frames.append(recv(_NOBLOCK))
            try:
                self._on_message(frames)
            except Exception as error:  # noqa: BLE001 - one bad message must not cost the ones behind it
                context = {"message": "message handler failed", "exception": error}
                self._loop.call_exception_handler(context)
        else:
            self._check_soon()
        if self._on_drained is not None and not self._socket.closed:
            self._on_drained()

    def close(self, *, linger_ms: int = 0) -> None:
        """Closes; what is queued gets `linger_ms` to leave."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=linger_ms)


def bind_router(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, max_message_bytes: int, queue_messages: int
) -> zmq.Socket[bytes]:
    """A ROUTER that reports unreachable peers, refuses oversized messages and bounds both queues."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    socket.setsockopt(zmq.RCVHWM, queue_messages)
    socket.setsockopt(zmq.SNDHWM, queue_messages)
    socket.setsockopt(zmq.LINGER, 0)
    # A connection that finds the backlog full fails at once on a unix socket.
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    socket.bind(endpoint)
    return socket


def connect_dealer(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, queue_messages: int
) -> zmq.Socket[bytes]:
    """A DEALER that reconnects by itself and keeps nothing for a peer that it has no connection to."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RCVHWM, queue_messages)
    socket.setsockopt(zmq.SNDHWM, queue_messages)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    return socket
