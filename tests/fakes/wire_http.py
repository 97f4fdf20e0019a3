"""What the three wire formats share: frames, checks, and the shape of one API."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from ottod.settings.script import Reply, Scene, fill

MODEL = "wire-model-1"


class BadBodyError(Exception):
    """The request is not what the API accepts."""


class Frame(NamedTuple):
    """Bytes to send. `chunk` marks a delta: faults and delays count these."""

    data: bytes
    chunk: bool = False


class Api(NamedTuple):
    """One API: where it lives, what it accepts, what it says."""

    path: str
    scene: Callable[[dict[str, Any]], Scene]
    """Checks the body and says where the script stands. Raises BadBodyError."""
    frames: Callable[[Reply, Scene, dict[str, Any]], list[Frame]]
    error: Callable[[int, str], dict[str, Any]]
    """The body of a refusal."""
    error_event: Callable[[int, str], bytes]
    """A refusal in the middle of a stream."""


def require(condition: object, message: str) -> None:
    """Refuses the request unless the condition holds."""
    if not condition:
        raise BadBodyError(message)


def proof(*parts: object) -> str:
    """A signature that the server can check later without remembering it."""
    return "proof-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def sse(data: object, event: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def pieces(text: str, size: int) -> list[str]:
    """The text in pieces."""
    return [text[i : i + size] for i in range(0, len(text), size)]


class Lines(NamedTuple):
    """A reply with its placeholders filled and its texts cut into deltas."""

    reasoning: list[str]
    text: list[str]
    tools: list[tuple[str, str, str]]
    """Call id, name, arguments."""


def lines(reply: Reply, scene: Scene) -> Lines:
    """What the model says. Malformed arguments are cut in half."""
    values, size = scene.values(), reply.chunk or 24
    tools = []
    for i, call in enumerate(reply.tools):
        arguments = fill(call.arguments, values)
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        if reply.malformed:
            text = text[: max(1, len(text) // 2)]
        tools.append((call.call or f"call_{scene.step + 1}_{i + 1}", call.name, text))
    return Lines(pieces(fill(reply.reasoning, values), size), pieces(fill(reply.text, values), size), tools)
