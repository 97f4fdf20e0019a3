"""The control socket's bound on the requests of one client."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from ottod.protocol import PROTOCOL_VERSION
from ottod.protocol.control import Hello, Reply, Request, client_messages, server_messages
from ottod.protocol.requests import Ping, RequestBody
from ottod.protocol.results import Done, Result
from ottod.root.control_gate import MAX_PENDING, ControlGate
from ottod.transport.socket import Socket
from tests.root.test_hub import CLIENT, Rig, in_loop


class Asker:
    """A socket whose client answers each reply at once with its next request, until it has asked `total`."""

    def __init__(self, total: int) -> None:
        self.gate: ControlGate | None = None
        self.left = total
        self.replies: list[Reply] = []

    def send(self, frames: list[bytes]) -> bool:
        message = server_messages.decode(frames[2])
        if isinstance(message, Reply):
            self.replies.append(message)
            if message.failure is None:
                self.ask()
        return True

    def ask(self) -> None:
        if self.left:
            self.left -= 1
            assert self.gate is not None
            self.gate.handle([CLIENT, client_messages.encode(Request(id=self.left, body=Ping()))])

    def close(self, *, linger_ms: int) -> None:
        pass


def test_a_request_that_has_been_answered_is_in_work_no_more(tmp_path: Path) -> None:
    """Whoever asks the next one for each answer, and never more than the bound at a time, is not refused."""

    async def body(rig: Rig) -> None:
        is_over, asker = asyncio.Event(), Asker(4 * MAX_PENDING)

        async def serve(client: bytes, body: RequestBody) -> Result:
            await is_over.wait()
            return Done()

        loop: Any = asyncio.get_running_loop()
        gate = ControlGate(loop, rig.hub, serve, instance="i", pid=1, token="t", max_clients=2, log=print)
        gate.attach(cast(Socket, asker))
        asker.gate = gate
        gate.handle([CLIENT, client_messages.encode(Hello(protocol=PROTOCOL_VERSION, client="c", token="t"))])
        for _ in range(MAX_PENDING):
            asker.ask()
        is_over.set()
        await rig.until(lambda: len(asker.replies) == 4 * MAX_PENDING - asker.left)
        assert [reply.failure for reply in asker.replies if reply.failure is not None] == []
        assert asker.left == 0
        gate.close()

    in_loop(tmp_path, body)
