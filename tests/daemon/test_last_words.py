"""What a daemon says just before it goes must reach those it was said to."""

from __future__ import annotations

import select
from pathlib import Path

import zmq

from ottoctl.link import Link

MESSAGES = 50


def test_what_arrived_before_the_end_can_still_be_read(tmp_path: Path) -> None:
    """A peer says fifty things and closes; a client that looks only after the break hears all fifty."""
    endpoint = f"ipc://{tmp_path}/x.sock"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    daemon = context.socket(zmq.ROUTER)
    daemon.bind(endpoint)
    link = Link(context, endpoint)
    try:
        assert link.send(b"hello")
        identity, _ = daemon.recv_multipart()
        for number in range(MESSAGES):
            daemon.send_multipart([identity, b"M", b"%d" % number])
        daemon.close(linger=5000)
        poll = select.poll()
        poll.register(link.monitor_fd, select.POLLIN)
        while not link.is_broken:
            assert poll.poll(30_000), "the link did not notice the end"
        heard, _ = link.drain()
        assert heard == [[b"M", b"%d" % number] for number in range(MESSAGES)]
    finally:
        link.close()
        context.destroy(linger=0)
