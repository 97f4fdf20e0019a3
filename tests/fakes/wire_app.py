"""The ASGI application of the wire server: checks a request, chooses the reply, and streams it, faults included."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ottod.settings.script import NoAlternativeError, Reply, Scene, Script, choose
from tests.fakes.wire_anthropic import ANTHROPIC
from tests.fakes.wire_chat import CHAT
from tests.fakes.wire_http import Api, BadBodyError, Frame
from tests.fakes.wire_responses import RESPONSES

APIS = {api.path: api for api in (ANTHROPIC, RESPONSES, CHAT)}
KEY = "sk-wire-0123456789abcdef"
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class CutError(Exception):
    """Ends the connection without ending the body: the HTTP server closes it when the application fails."""


@dataclass
class Recorded:
    """One request and what became of it: `open`, `answered`, `refused`, `cut` or `disconnected`.

    `at_s` is when it came, on the monotonic clock.
    """

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    client_port: int
    ended: str = "open"
    problem: str = ""
    chunks_sent: int = 0
    at_s: float = field(default_factory=time.monotonic)


@dataclass
class WireApp:
    """Plays a script. `key` is the only key it accepts; empty accepts all. Markers are files in `directory`."""

    script: Script
    directory: Path
    key: str = KEY
    requests: list[Recorded] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    attempts: dict[tuple[str, int], int] = field(default_factory=dict)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/requests":
            await _json(send, 200, [vars(record) for record in self.requests])
            return
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        key = headers.pop("authorization", "").removeprefix("Bearer ") or headers.pop("x-api-key", "")
        record = Recorded(scope["path"], headers, json.loads(await _read(receive) or b"{}"), scope["client"][1])
        self.requests.append(record)
        api = APIS.get(scope["path"])
        if api is None:
            await self._refuse(send, record, 404, {"error": {"message": f"no path {scope['path']}"}})
        elif self.key and key != self.key:
            # Real servers quote the key; a client that quotes them leaks it.
            await self._refuse(send, record, 401, api.error(401, f"Incorrect API key provided: {key}"))
        else:
            await self._answer(api, record, receive, send)

    async def _refuse(
        self, send: Send, record: Recorded, status: int, body: object, headers: dict[str, str] | None = None
    ) -> None:
        record.ended, record.problem = "refused", json.dumps(body)
        await _json(send, status, body, headers)

    async def _answer(self, api: Api, record: Recorded, receive: Receive, send: Send) -> None:
        try:
            now = api.scene(record.body)
            reply = self._choose(api, now)
        except (BadBodyError, KeyError, TypeError, NoAlternativeError) as error:
            await self._refuse(send, record, 400, api.error(400, f"{type(error).__name__}: {error}"))
            return
        armed = bool(reply.faults()) and not self._has_struck(reply)
        if armed and reply.error is not None and not reply.after_chunks:
            after_s = reply.error.retry_after_s
            headers = {} if after_s is None else {"retry-after": f"{after_s:g}"}
            body = api.error(reply.error.status, reply.error.message or "as scripted")
            await self._refuse(send, record, reply.error.status, body, headers)
            return
        frames = api.frames(reply, now, record.body)
        await self._until_gone(self._play(api, frames, reply, record, send, armed=armed), record, receive)

    def _choose(self, api: Api, now: Scene) -> Reply:
        attempt = self.attempts.get((api.path, now.step), 0)
        self.attempts[api.path, now.step] = attempt + 1
        reply = choose(self.script, now, attempt) or Reply(text="The script has ended.")
        return msgspec.structs.replace(reply, chunk=reply.chunk or self.script.chunk)

    def _has_struck(self, reply: Reply) -> bool:
        if not reply.marker:
            return False
        marker = self.directory / reply.marker
        existed = marker.exists()
        marker.touch()
        return existed

    async def _until_gone(self, playing: Awaitable[None], record: Recorded, receive: Receive) -> None:
        """Plays until the end, until the client is gone, or until the server closes."""
        play = asyncio.ensure_future(playing)
        gone = asyncio.ensure_future(_disconnected(receive))
        closing = asyncio.ensure_future(self.closing.wait())
        tasks = (play, gone, closing)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not play.done():
            record.ended = "disconnected" if gone.done() else "cut"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if record.ended == "cut":
            raise CutError

    async def _play(
        self, api: Api, frames: list[Frame], reply: Reply, record: Recorded, send: Send, *, armed: bool
    ) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
        strike_at = _strike_index(frames, reply) if armed else -1
        delay_s = (self.script.delay_ms if reply.delay_ms is None else reply.delay_ms) / 1000
        for i, frame in enumerate(frames):
            if i == strike_at:
                await self._strike(api, reply, record, send)
            if frame.chunk and record.chunks_sent:
                await asyncio.sleep(delay_s)
            await _body(send, frame.data)
            record.chunks_sent += frame.chunk
        await _body(send, b"", more=False)
        record.ended = "answered"

    async def _strike(self, api: Api, reply: Reply, record: Recorded, send: Send) -> None:
        if reply.error is not None:
            await _body(send, api.error_event(reply.error.status, "as scripted"))
        elif reply.cut is not None or reply.crash:
            record.ended = "cut"
            raise CutError
        elif reply.stall is not None:
            await asyncio.sleep(reply.stall)
        elif reply.malformed and not reply.tools:
            await _body(send, b'data: {"type": \n\n')


def _strike_index(frames: list[Frame], reply: Reply) -> int:
    """The frame before which the fault happens: the chunk it names, or what follows the last one."""
    chunks = [i for i, frame in enumerate(frames) if frame.chunk]
    after = reply.after_chunks if reply.cut is None else reply.cut
    if after < len(chunks):
        return chunks[after]
    return chunks[-1] + 1 if chunks else 1


async def _read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _json(send: Send, status: int, body: object, headers: dict[str, str] | None = None) -> None:
    fields = {"content-type": "application/json", **(headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await _body(send, json.dumps(body).encode(), more=False)
