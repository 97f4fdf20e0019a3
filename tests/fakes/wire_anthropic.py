"""The Messages API as a server speaks it: what it checks in a request, and the events of a streamed message."""

from __future__ import annotations

from typing import Any

from ottod.settings.script import Reply, Scene, ScriptedUsage
from tests.fakes.wire_http import MODEL, Api, Frame, lines, proof, require, sse

STOPS = {"end": "end_turn", "tool_calls": "tool_use", "max_tokens": "max_tokens", "refusal": "refusal"}
KINDS = {400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error"}
KINDS |= {404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
ROLES = ("user", "assistant")


def scene(body: dict[str, Any]) -> Scene:
    """Checks the body as the API does and says where the script stands. Raises BadBodyError."""
    require(isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 0, "max_tokens: required")
    require(body.get("stream") is True, "stream: this server only streams")
    messages: list[dict[str, Any]] = body.get("messages", [])
    require(isinstance(messages, list) and messages, "messages: at least one message is required")
    for tool in body.get("tools", []):
        require(tool["input_schema"].get("type") == "object", "tools: input_schema.type must be object")
    _check_breakpoints(body)
    pending: list[str] = []
    users: list[str] = []
    results: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        require(message["role"] == ROLES[i % 2], f"messages.{i}: roles must alternate, beginning with user")
        blocks = message["content"]
        require(isinstance(blocks, list) and blocks, f"messages.{i}: content must not be empty")
        if message["role"] == "assistant":
            pending = _check_assistant(blocks, f"messages.{i}")
        else:
            found = _check_user(blocks, pending, f"messages.{i}")
            pending, results = [], found or results
            users += [b["text"] for b in blocks if b["type"] == "text"]
    require(messages[-1]["role"] == "user", "messages: the last one must be the user's")
    return Scene(
        step=sum(m["role"] == "assistant" for m in messages),
        task=users[0] if users else "",
        input=users[-1] if users else "",
        last_tool_result="\n".join(str(r["content"]) for r in results),
        tool_is_error=any(r.get("is_error") for r in results),
    )


def _check_breakpoints(body: dict[str, Any]) -> None:
    blocks = [b for m in body["messages"] for b in m["content"]] + body.get("system", []) + body.get("tools", [])
    marked = [b for b in blocks if "cache_control" in b]
    require(len(marked) <= 4, "cache_control: at most 4 breakpoints")
    require(all(b["cache_control"] == {"type": "ephemeral"} for b in marked), "cache_control: unknown type")


def _check_user(blocks: list[dict[str, Any]], pending: list[str], where: str) -> list[dict[str, Any]]:
    results = [b for b in blocks if b["type"] == "tool_result"]
    answered = [b["tool_use_id"] for b in results]
    require(sorted(answered) == sorted(pending), f"{where}: tool_use ids {pending} need exactly one tool_result each")
    kinds = [b["type"] for b in blocks]
    require(kinds == sorted(kinds, key=lambda k: k != "tool_result"), f"{where}: tool_result blocks must come first")
    require(all(b["text"].strip() for b in blocks if b["type"] == "text"), f"{where}: text must not be blank")
    return results


def _check_assistant(blocks: list[dict[str, Any]], where: str) -> list[str]:
    calls = []
    for block in blocks:
        match block["type"]:
            case "text":
                require(block["text"].strip(), f"{where}: text must not be blank")
            case "thinking":
                require(block["signature"] == proof(block["thinking"]), f"{where}: thinking was modified")
            case "redacted_thinking":
                require(block["data"].startswith("proof-"), f"{where}: redacted thinking was modified")
            case "tool_use":
                require(isinstance(block["input"], dict), f"{where}: tool_use.input must be an object")
                calls.append(block["id"])
            case other:
                require(False, f"{where}: unknown block type {other!r}")
    require("thinking" not in blocks[-1]["type"], f"{where}: the final block cannot be thinking")
    require(len(set(calls)) == len(calls), f"{where}: tool_use ids must be unique")
    return calls


def error(status: int, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    kind = KINDS.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def frames(reply: Reply, scene: Scene, body: dict[str, Any]) -> list[Frame]:
    """A streamed message."""
    said = lines(reply, scene)
    usage = reply.usage or ScriptedUsage(input_tokens=10, output_tokens=5)
    out: list[Frame] = []

    def add(kind: str, *, chunk: bool = False, **fields: object) -> None:
        out.append(Frame(sse({"type": kind, **fields}, kind), chunk))

    counted = {
        "input_tokens": usage.input_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "output_tokens": 1,
    }
    head = {"id": f"msg_{scene.step + 1}", "type": "message", "role": "assistant", "model": body["model"] or MODEL}
    head |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": counted}
    add("message_start", message=head)
    out.append(Frame(sse({"type": "ping"}, "ping")))
    index = 0

    def block(begin: dict[str, Any], deltas: list[dict[str, Any]], *, chunk: bool) -> None:
        nonlocal index
        add("content_block_start", index=index, content_block=begin)
        for delta in deltas:
            add("content_block_delta", index=index, delta=delta, chunk=chunk and "signature" not in delta)
        add("content_block_stop", index=index)
        index += 1

    if said.reasoning:
        deltas: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": t} for t in said.reasoning]
        deltas.append({"type": "signature_delta", "signature": proof("".join(said.reasoning))})
        block({"type": "thinking", "thinking": "", "signature": ""}, deltas, chunk=True)
    if said.text:
        block({"type": "text", "text": ""}, [{"type": "text_delta", "text": t} for t in said.text], chunk=True)
    for call, name, arguments in said.tools:
        parts = ["", arguments[:5], arguments[5:]]
        block(
            {"type": "tool_use", "id": call, "name": name, "input": {}},
            [{"type": "input_json_delta", "partial_json": part} for part in parts],
            chunk=False,
        )
    stop = STOPS[reply.stop or ("tool_calls" if said.tools else "end")]
    final: dict[str, Any] = {"output_tokens": usage.output_tokens}
    final["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    add("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage=final)
    add("message_stop")
    return out


def error_event(status: int, message: str) -> bytes:
    """A refusal in the middle of a stream."""
    return sse(error(status, message), "error")


ANTHROPIC = Api("/v1/messages", scene, frames, error, error_event)
