"""Chat Completions as a server speaks it: what it checks in a request, and the chunks of a streamed completion."""

from __future__ import annotations

import json
from typing import Any

from ottod.settings.script import Reply, Scene, ScriptedUsage
from tests.fakes.wire_http import MODEL, Api, BadBodyError, Frame, lines, require, sse

STOPS = {"end": "stop", "tool_calls": "tool_calls", "max_tokens": "length", "refusal": "content_filter"}
KINDS = {401: "invalid_api_key", 402: "insufficient_quota", 404: "model_not_found", 429: "rate_limit_exceeded"}


def scene(body: dict[str, Any]) -> Scene:
    """Checks the body as the API does and says where the script stands. Raises BadBodyError."""
    require(body.get("stream") is True, "stream: this server only streams")
    require(body.get("stream_options", {}).get("include_usage") is True, "stream_options.include_usage: wanted")
    messages: list[dict[str, Any]] = body.get("messages", [])
    require(isinstance(messages, list) and messages, "messages: required")
    for tool in body.get("tools", []):
        require(tool["function"]["parameters"].get("type") == "object", "tools: parameters.type must be object")
    pending: list[str] = []
    results: list[str] = []
    for i, message in enumerate(messages):
        where = f"messages.{i}"
        if message["role"] == "tool":
            require(message["tool_call_id"] in pending, f"{where}: answers no open tool call")
            pending.remove(message["tool_call_id"])
            results.append(message["content"])
            continue
        require(not pending, f"{where}: tool calls {pending} have no answer")
        match message["role"]:
            case "system":
                require(i == 0, f"{where}: system comes first")
            case "user":
                require(isinstance(message["content"], str), f"{where}: content must be text")
            case "assistant":
                pending, results = _check_assistant(message, where), []
            case other:
                require(False, f"{where}: unknown role {other!r}")
    require(not pending, f"messages: tool calls {pending} have no answer")
    users = [m["content"] for m in messages if m["role"] == "user"]
    return Scene(
        step=sum(m["role"] == "assistant" for m in messages),
        task=users[0] if users else "",
        input=users[-1] if users else "",
        last_tool_result="\n".join(results),
    )


def _check_assistant(message: dict[str, Any], where: str) -> list[str]:
    calls = message.get("tool_calls", [])
    require(message.get("content") or calls, f"{where}: content or tool_calls are required")
    for call in calls:
        require(call["type"] == "function" and call["id"], f"{where}: a tool call needs type and id")
        try:
            require(isinstance(json.loads(call["function"]["arguments"]), dict), f"{where}: arguments: an object")
        except ValueError as error:
            raise BadBodyError(f"{where}: arguments are not JSON") from error
    return [call["id"] for call in calls]


def error(status: int, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": KINDS.get(status)}}


def frames(reply: Reply, scene: Scene, body: dict[str, Any]) -> list[Frame]:
    """A streamed completion."""
    said = lines(reply, scene)
    usage = reply.usage or ScriptedUsage(input_tokens=10, output_tokens=5)
    base = {"id": f"chatcmpl-{scene.step + 1}", "object": "chat.completion.chunk", "created": 1_700_000_000}
    base |= {"model": body["model"] or MODEL}
    out: list[Frame] = []

    def add(delta: dict[str, Any], finish: str | None = None, *, chunk: bool = False) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        out.append(Frame(sse({**base, "choices": [choice], "usage": None}), chunk))

    add({"role": "assistant", "content": "", "refusal": None})
    for text in said.reasoning:
        add({"reasoning_content": text}, chunk=True)
    for text in said.text:
        add({"content": text}, chunk=True)
    for i, (call, name, arguments) in enumerate(said.tools):
        begin = {"index": i, "id": call, "type": "function", "function": {"name": name, "arguments": ""}}
        add({"tool_calls": [begin]})
        for part in (arguments[:5], arguments[5:]):
            add({"tool_calls": [{"index": i, "function": {"arguments": part}}]})
    add({}, STOPS[reply.stop or ("tool_calls" if said.tools else "end")])
    cached = usage.cache_read_tokens + usage.cache_write_tokens
    details = {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": usage.cache_write_tokens}
    counted = {
        "prompt_tokens": usage.input_tokens + cached,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + cached + usage.output_tokens,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
    out.append(Frame(sse({**base, "choices": [], "usage": counted})))
    out.append(Frame(sse("[DONE]")))
    return out


def error_event(status: int, message: str) -> bytes:
    """A refusal in the middle of a stream."""
    return sse(error(status, message))


CHAT = Api("/v1/chat/completions", scene, frames, error, error_event)
