"""The zygote's loop: imports everything a worker needs, freezes it, and forks one worker per order.

It has no event loop, no ZeroMQ context and no threads, so that its forks are safe. Every order arrives on a
SEQPACKET socket with one file descriptor, the worker's private channel. The worker is forked twice, so that root,
which is a child subreaper, becomes its parent; the answer leaves only after that has happened. When root's end of
the socket closes, the zygote ends.

    python -m ottod.zygote SOCKET_FD GENERATION WORKER_ENDPOINT MODULE NAME…

The module has two functions: `prepare(names)`, called once, and `run(channel_fd, endpoint)`, called in each worker.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from setproctitle import setproctitle

from ottod.errors import RemoteProtocolError
from ottod.protocol.zygote import Forked, ForkFailed, ZygoteReady, zygote_replies, zygote_requests

MAX_REQUEST_BYTES = 4096
Entry = Callable[[int, str], None]


def main() -> None:
    """Serves until root is gone."""
    fd, generation, endpoint, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    started = time.monotonic()
    # A terminal's Ctrl-C and root's own shutdown signals are root's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    module = importlib.import_module(name)
    module.prepare(sys.argv[5:])
    entry: Entry = module.run
    setproctitle(f"ottod: zygote {generation}")
    assert threading.active_count() == 1, "a module started a thread at import"
    gc.collect()
    gc.freeze()
    os.set_inheritable(fd, False)
    orders = socket.socket(fileno=fd)
    import_ms = (time.monotonic() - started) * 1000
    try:
        orders.send(zygote_replies.encode(ZygoteReady(pid=os.getpid(), generation=generation, import_ms=import_ms)))
    except BrokenPipeError:
        return  # Root stopped while this process was still importing.
    while True:
        try:
            data, fds, _flags, _address = socket.recv_fds(orders, MAX_REQUEST_BYTES, 1)
        except ConnectionResetError:
            return  # Root died, and had not yet read all that it was told.
        if not data:
            return
        try:
            request = zygote_requests.decode(data)
        except RemoteProtocolError:
            request = None
        if request is not None and fds:
            try:
                orders.send(_fork(request.ticket, fds[0], orders, entry, endpoint))
            except (BrokenPipeError, ConnectionResetError):
                return  # Root died meanwhile; the worker takes its closed channel for the order to go.
        for received in fds:
            os.close(received)


def _fork(ticket: int, channel_fd: int, orders: socket.socket, entry: Entry, endpoint: str) -> bytes:
    """Forks twice and answers with the grandchild's pid once it is root's child."""
    read_fd, write_fd = os.pipe()
    try:
        middle = os.fork()
    except OSError as error:
        os.close(read_fd)
        os.close(write_fd)
        return zygote_replies.encode(ForkFailed(ticket=ticket, message=error.strerror or str(error)))
    if middle == 0:
        _be_middle(read_fd, write_fd, channel_fd, orders, entry, endpoint)
    os.close(write_fd)
    answer = os.read(read_fd, 8)
    os.close(read_fd)
    # The middle process is gone before root hears of the worker: its child has been handed on.
    os.waitpid(middle, 0)
    if len(answer) != 4:
        return zygote_replies.encode(ForkFailed(ticket=ticket, message="the second fork failed"))
    return zygote_replies.encode(Forked(ticket=ticket, pid=struct.unpack("=i", answer)[0]))


def _stay(_number: int, _frame: FrameType | None) -> None:
    """Nothing."""


def _be_middle(
    read_fd: int, write_fd: int, channel_fd: int, orders: socket.socket, entry: Entry, endpoint: str
) -> None:
    """The life of the process between: fork once more and vanish. Never returns."""
    try:
        worker = os.fork()
    except OSError:
        os._exit(1)
    if worker:
        os.write(write_fd, struct.pack("=i", worker))
        os._exit(0)
    status = 1
    try:
        os.close(read_fd)
        os.close(write_fd)
        orders.close()
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # When root dies, the kernel hangs up on its children's process groups if one of them is stopped. A worker
        # outlives root, stopped or not. A handler, unlike SIG_IGN, does not pass to the programs that it starts.
        signal.signal(signal.SIGHUP, _stay)
        entry(channel_fd, endpoint)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing of the zygote's stack may run in a worker
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
