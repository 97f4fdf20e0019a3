"""The Responses API as a server speaks it: what it checks in a request, and the events of a streamed response."""

from __future__ import annotations

from typing import Any

from ottod.settings.script import Reply, Scene, ScriptedUsage
from tests.fakes.wire_chat import error
from tests.fakes.wire_http import MODEL, Api, Frame, Lines, lines, proof, require, sse


def scene(body: dict[str, Any]) -> Scene:
    """Checks the body as the API does and says where the script stands. Raises BadBodyError."""
    require(body.get("stream") is True, "stream: this server only streams")
    require(body.get("store") is False, "store: nothing may be stored")
    items: list[dict[str, Any]] = body.get("input", [])
    require(isinstance(items, list) and items, "input: required")
    for tool in body.get("tools", []):
        require(tool["type"] == "function", "tools: only functions")
        require(tool["parameters"].get("type") == "object", "tools: parameters.type must be object")
    pending: list[str] = []
    results: list[str] = []
    step, in_answer = 0, False
    for i, item in enumerate(items):
        where = f"input.{i}"
        if item["type"] == "function_call_output":
            require(item["call_id"] in pending, f"{where}: no tool call found for {item['call_id']}")
            pending.remove(item["call_id"])
            results.append(item["output"])
            in_answer = False
            continue
        if item.get("role") == "user":
            require(not pending, f"{where}: no tool output found for {pending}")
            require(isinstance(item["content"], str), f"{where}: content must be text")
            in_answer = False
            continue
        if not in_answer:
            require(not pending, f"{where}: no tool output found for {pending}")
            step, in_answer, results = step + 1, True, []
        _check_answer(item, where)
        if item["type"] == "function_call":
            pending.append(item["call_id"])
    require(not pending, f"input: no tool output found for {pending}")
    users = [item["content"] for item in items if item.get("role") == "user"]
    return Scene(
        step=step,
        task=users[0] if users else "",
        input=users[-1] if users else "",
        last_tool_result="\n".join(results),
    )


def _check_answer(item: dict[str, Any], where: str) -> None:
    match item["type"]:
        case "message":
            require(item["role"] == "assistant" and item["content"], f"{where}: content must not be empty")
        case "reasoning":
            text = "\n\n".join(part["text"] for part in item["summary"])
            require(item["encrypted_content"] == proof(item["id"], text), f"{where}: reasoning was modified")
        case "function_call":
            require(item["call_id"] and item["name"], f"{where}: call_id and name are required")
            require(isinstance(item["arguments"], str), f"{where}: arguments must be text")
        case other:
            require(False, f"{where}: unknown item type {other!r}")


class _Events:
    """Numbers events and items."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.output: list[dict[str, Any]] = []

    def add(self, kind: str, *, chunk: bool = False, **fields: object) -> None:
        event = {"type": kind, "sequence_number": len(self.frames), **fields}
        self.frames.append(Frame(sse(event, kind), chunk))

    def begin(self, item: dict[str, Any]) -> dict[str, Any]:
        """Adds an output item; the fields that its events share."""
        self.add("response.output_item.added", output_index=len(self.output), item=item)
        return {"output_index": len(self.output), "item_id": item["id"]}

    def end(self, item: dict[str, Any]) -> None:
        self.add("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)


def frames(reply: Reply, scene: Scene, body: dict[str, Any]) -> list[Frame]:
    """A streamed response."""
    said = lines(reply, scene)
    events = _Events()
    base = {"id": f"resp_{scene.step + 1}", "object": "response", "created_at": 1_700_000_000, "error": None}
    base |= {"model": body["model"] or MODEL, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    begun = {**base, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    events.add("response.created", response=begun)
    events.add("response.in_progress", response=begun)
    if said.reasoning:
        _reasoning(events, said, scene)
    if said.text:
        _message(events, said, scene, refusal=reply.stop == "refusal")
    for i, call in enumerate(said.tools):
        _function_call(events, call, f"fc_{scene.step + 1}_{i + 1}")
    cut_short = reply.stop == "max_tokens"
    kind = "incomplete" if cut_short else "completed"
    why = {"reason": "max_output_tokens"} if cut_short else None
    whole = {**base, "status": kind, "incomplete_details": why, "output": events.output, "usage": _usage(reply)}
    events.add(f"response.{kind}", response=whole)
    return events.frames


def _usage(reply: Reply) -> dict[str, Any]:
    usage = reply.usage or ScriptedUsage(input_tokens=10, output_tokens=5)
    total = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    details = {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": usage.cache_write_tokens}
    return {
        "input_tokens": total,
        "input_tokens_details": details,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": total + usage.output_tokens,
    }


def _reasoning(events: _Events, said: Lines, scene: Scene) -> None:
    item: dict[str, Any] = {"id": f"rs_{scene.step + 1}", "type": "reasoning", "summary": []}
    at = {**events.begin({**item, "encrypted_content": "incomplete"}), "summary_index": 0}
    text = "".join(said.reasoning)
    events.add("response.reasoning_summary_part.added", part={"type": "summary_text", "text": ""}, **at)
    for piece in said.reasoning:
        events.add("response.reasoning_summary_text.delta", delta=piece, chunk=True, **at)
    part = {"type": "summary_text", "text": text}
    events.add("response.reasoning_summary_text.done", text=text, **at)
    events.add("response.reasoning_summary_part.done", part=part, **at)
    events.end({**item, "summary": [part], "encrypted_content": proof(item["id"], text)})


def _message(events: _Events, said: Lines, scene: Scene, *, refusal: bool) -> None:
    item: dict[str, Any] = {"id": f"msg_{scene.step + 1}", "type": "message", "role": "assistant"}
    at = {**events.begin({**item, "status": "in_progress", "content": []}), "content_index": 0}
    text = "".join(said.text)
    kind, field = ("refusal", "refusal") if refusal else ("output_text", "text")
    extra: dict[str, Any] = {} if refusal else {"annotations": [], "logprobs": []}
    events.add("response.content_part.added", part={"type": kind, field: "", **extra}, **at)
    for piece in said.text:
        events.add(f"response.{kind}.delta", delta=piece, chunk=True, **at)
    part = {"type": kind, field: text, **extra}
    events.add(f"response.{kind}.done", **(at | {field: text}))
    events.add("response.content_part.done", part=part, **at)
    events.end({**item, "status": "completed", "content": [part]})


def _function_call(events: _Events, call: tuple[str, str, str], item_id: str) -> None:
    call_id, name, arguments = call
    item = {"id": item_id, "type": "function_call", "call_id": call_id, "name": name}
    at = events.begin({**item, "status": "in_progress", "arguments": ""})
    for part in (arguments[:5], arguments[5:]):
        events.add("response.function_call_arguments.delta", delta=part, **at)
    events.add("response.function_call_arguments.done", arguments=arguments, **at)
    events.end({**item, "status": "completed", "arguments": arguments})


def error_event(status: int, message: str) -> bytes:
    """A refusal in the middle of a stream."""
    code = {429: "rate_limit_exceeded", 400: "invalid_prompt"}.get(status, "server_error")
    return sse({"type": "error", "code": code, "message": message, "param": None, "sequence_number": 99}, "error")


RESPONSES = Api("/v1/responses", scene, frames, error, error_event)
