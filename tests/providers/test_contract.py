"""The one contract of all providers. The real SDKs run against a real server that checks what they send."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from ottod.protocol.model import (
    AssistantMessage,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegun,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.protocol.usage import Usage
from ottod.providers import anthropic_stream, openai_chat, openai_responses
from ottod.providers.base import Provider
from ottod.providers.registry import build_provider
from tests.fakes.wire_app import KEY
from tests.fakes.wire_rig import (
    DEADLINE_S,
    KINDS,
    WIRE_KINDS,
    answered,
    failure,
    play,
    request,
    rig,
    run,
    target_of,
    until,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
every_wire = pytest.mark.parametrize("kind", WIRE_KINDS)

TWO_TURNS = """
chunk: 5
turns:
  - reasoning: "I should read both files."
    text: "Reading — ${task}"
    tools:
      - {name: fs_read, arguments: {path: a.py, "naïve": [1, {"x": null}]}}
      - {name: fs_read, arguments: {path: b.py}}
  - text: "Seen: ${last_tool_result}"
  - text: third
"""


@every_kind
def test_text_streams_in_order_and_adds_up_to_the_response(kind: str, tmp_path: Path) -> None:
    """Deltas come in order, several of them, and the response holds exactly what they said."""
    text = "The quick brown fox — «ünïcode» 🦊 — jumps over the lazy dog.\n\nTwice."
    with rig(kind, tmp_path, f"chunk: 7\nturns:\n  - text: {json.dumps(text, ensure_ascii=False)}\n") as r:
        events, response = run(lambda p: play(p, request()), r.provider)
    deltas = [e.text for e in events if isinstance(e, TextDelta)]
    assert len(deltas) == len(events) == -(-len(text) // 7)
    assert "".join(deltas) == text
    assert response.blocks == (Text(text=text),)
    assert response.stop == "end"
    assert response.model == "m-1"
    assert response.response


@every_kind
def test_parallel_tool_calls_arrive_whole_and_in_order(kind: str, tmp_path: Path) -> None:
    """Each call is announced, has an id of its own and arguments that parse to what the model meant."""
    with rig(kind, tmp_path, TWO_TURNS) as r:
        events, response = run(lambda p: play(p, request()), r.provider)
    calls = [b for b in response.blocks if isinstance(b, ToolCall)]
    begun = [e for e in events if isinstance(e, ToolCallBegun)]
    assert [(e.call, e.tool) for e in begun] == [(c.call, c.tool) for c in calls]
    assert len({c.call for c in calls}) == 2
    assert json.loads(calls[0].arguments) == {"path": "a.py", "naïve": [1, {"x": None}]}
    assert json.loads(calls[1].arguments) == {"path": "b.py"}
    assert response.stop == "tool_calls"
    kinds = [type(b) for b in response.blocks]
    assert kinds == [Thinking, Text, ToolCall, ToolCall]


@every_kind
def test_tool_results_go_back_and_the_server_finds_the_conversation_valid(kind: str, tmp_path: Path) -> None:
    """Three calls in one conversation: results reach the model, and reasoning goes back unchanged."""

    async def main(provider: Provider) -> tuple[str, str]:
        asked = UserMessage(text="Fix the bug.")
        _, first = await play(provider, request(asked, thinking_tokens=4096))
        so_far = (asked, *answered(first, "alpha", "beta"))
        _, second = await play(provider, request(*so_far, thinking_tokens=4096))
        so_far = (*so_far, *answered(second), UserMessage(text="And now?"))
        _, third = await play(provider, request(*so_far, thinking_tokens=4096))
        return cast(Text, second.blocks[-1]).text, cast(Text, third.blocks[-1]).text

    with rig(kind, tmp_path, TWO_TURNS) as r:
        assert run(main, r.provider) == ("Seen: alpha\nbeta", "third")
        # The last byte is here before the server has noted that it sent it.
        asyncio.run(until(lambda: all(q.ended == "answered" for q in r.requests()), r.requests))
        bodies = [json.dumps(q.body) for q in r.requests()]
    if kind != "scripted":
        # The server refuses modified proofs; that they are there at all is checked here.
        assert "I should read both files." in bodies[1]
        assert kind == "openai-chat" or "proof-" in bodies[2]


@every_kind
def test_reasoning_streams_before_the_answer(kind: str, tmp_path: Path) -> None:
    """Reasoning has deltas and a block of its own, marked with the provider that can read its proof."""
    with rig(kind, tmp_path, TWO_TURNS) as r:
        events, response = run(lambda p: play(p, request(thinking_tokens=4096)), r.provider)
    thought = "".join(e.text for e in events if isinstance(e, ThinkingDelta))
    assert thought == "I should read both files."
    first_text = next(i for i, e in enumerate(events) if isinstance(e, TextDelta))
    assert not any(isinstance(e, ThinkingDelta) for e in events[first_text:])
    block = response.blocks[0]
    assert isinstance(block, Thinking)
    assert (block.text, block.provider) == (thought, r.target.provider)


@every_kind
def test_usage_counts_cached_tokens_apart(kind: str, tmp_path: Path) -> None:
    """Input is what was not cached; reads, writes and reasoning are counted on their own."""
    script = """
turns:
  - text: ok
    usage: {input_tokens: 100, output_tokens: 40, cache_read_tokens: 3000, cache_write_tokens: 500,
            reasoning_tokens: 25}
"""
    with rig(kind, tmp_path, script) as r:
        _, response = run(lambda p: play(p, request()), r.provider)
    assert response.usage == Usage(
        input_tokens=100,
        output_tokens=40,
        cache_read_tokens=3000,
        cache_write_tokens=500,
        reasoning_tokens=25,
        calls=1,
    )


@every_kind
@pytest.mark.parametrize("stop", ["max_tokens", "refusal"])
def test_stop_reasons_are_told_apart(kind: str, stop: str, tmp_path: Path) -> None:
    """A response that was cut short by its limit or by a refusal says so."""
    with rig(kind, tmp_path, f"turns:\n  - text: part\n    stop: {stop}\n") as r:
        _, response = run(lambda p: play(p, request()), r.provider)
    assert response.stop == stop
    assert response.blocks == (Text(text="part"),)


@every_kind
@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "bad_request", False),
        (401, "auth", False),
        (402, "refused", False),
        (403, "auth", False),
        (404, "bad_request", False),
        (413, "context_too_long", False),
        (429, "rate_limited", True),
        (500, "overloaded", True),
        (503, "overloaded", True),
        (529, "overloaded", True),
    ],
)
def test_refusals_have_one_meaning(kind: str, status: int, code: str, retryable: bool, tmp_path: Path) -> None:
    """A status means the same whoever sends it; nothing is retried; the message is one line."""
    with rig(kind, tmp_path, f"turns:\n  - error: {{status: {status}}}\n") as r:
        events, error = run(lambda p: failure(p, request()), r.provider)
        assert len(r.requests()) == (kind != "scripted")
    assert (events, error.code, error.retryable, error.retry_after_s) == ([], code, retryable, None)
    assert "\n" not in error.message
    assert str(status) in error.message


@every_kind
def test_a_rate_limit_says_when_to_come_back(kind: str, tmp_path: Path) -> None:
    """The retry-after of a 429 reaches the caller in seconds, and the retry succeeds on the same provider."""
    script = "turns:\n  - error: {status: 429, retry_after_s: 2.5}\n    times: 1\n  - text: ok\n"

    async def main(provider: Provider) -> tuple[float | None, object]:
        _, error = await failure(provider, request())
        _, response = await play(provider, request())
        return error.retry_after_s, response.blocks

    with rig(kind, tmp_path, script) as r:
        assert run(main, r.provider) == (2.5, (Text(text="ok"),))


@every_kind
def test_a_context_that_is_too_long_is_recognised(kind: str, tmp_path: Path) -> None:
    """A 400 about the context's length is told from other bad requests, for the caller can mend it."""
    script = 'turns:\n  - error: {status: 400, message: "prompt is too long: 210000 tokens > 200000 maximum"}\n'
    with rig(kind, tmp_path, script) as r:
        _, error = run(lambda p: failure(p, request()), r.provider)
    assert error.code == "context_too_long"
    assert "210000" in error.message


@every_wire
@pytest.mark.parametrize("key", ["sk-wrong-99999999", ""])
def test_a_wrong_or_missing_key_names_its_setting_and_is_not_repeated(kind: str, key: str, tmp_path: Path) -> None:
    """The server quotes the wrong key; the error does not. Without a key no request is made."""
    with rig(kind, tmp_path, "turns:\n  - text: ok\n", key=key) as r:
        _, error = run(lambda p: failure(p, request()), r.provider)
        assert len(r.requests()) == bool(key)
    assert (error.code, error.retryable) == ("auth", False)
    variable = "ANTHROPIC_API_KEY" if kind == "anthropic" else "OPENAI_API_KEY"
    assert variable in error.mend
    assert "sk-wrong" not in repr(error.failure()) + repr(error) + repr(vars(r.provider).get("_peer"))


@every_kind
def test_an_unreachable_provider_is_a_connection_error(kind: str, tmp_path: Path) -> None:
    """Nobody listens: retryable, and the message names where it tried to go."""
    held = socket.socket()
    if kind == "scripted":
        script = tmp_path / "script.yml"
        script.write_text("turns:\n  - error: {status: 0}\n")
        provider = build_provider(target_of(kind, script=script))
    else:
        # Nobody else comes to listen there meanwhile.
        held.bind(("127.0.0.1", 0))
        provider = build_provider(target_of(kind, url=f"http://127.0.0.1:{held.getsockname()[1]}"), KEY)
    with held:
        events, error = run(lambda p: failure(p, request()), provider)
    assert (events, error.code, error.retryable) == ([], "connection", True)
    assert ("127.0.0.1" if kind != "scripted" else "script.yml") in error.message


@every_kind
def test_silence_ends_at_the_idle_time_out(kind: str, tmp_path: Path) -> None:
    """A stall in the middle of a stream is a timeout after idle_timeout_s; the connection is closed."""
    script = "chunk: 4\nturns:\n  - text: abcdefgh\n    stall: 60\n    after_chunks: 1\n"
    # A busy machine may be silent for so long before the first word; then there is more time for that.
    for idle_s in (0.3, 3.0, 15.0):
        with rig(kind, tmp_path, script) as r:
            began = time.monotonic()
            asked = request(timeout_s=60.0, idle_timeout_s=idle_s)
            events, error = run(lambda p, asked=asked: failure(p, asked), r.provider)  # type: ignore[misc]
            took_s = time.monotonic() - began
            asyncio.run(until(lambda r=r: all(q.ended == "disconnected" for q in r.requests())))  # type: ignore[misc]
        if events:
            break
    assert events == [TextDelta(text="abcd")]
    assert (error.code, error.retryable) == ("timeout", True)
    assert f"{idle_s:g} s" in error.message
    assert idle_s <= took_s < 55, "less than the total, and than the stall"


@every_kind
def test_a_stream_that_never_ends_meets_the_total_time_out(kind: str, tmp_path: Path) -> None:
    """Output does not extend the total: a slow drip is cut off at timeout_s."""
    script = f"chunk: 1\ndelay_ms: 20\nturns:\n  - text: {'x' * 3000}\n"
    for limit_s in (2.0, 15.0):
        with rig(kind, tmp_path, script) as r:
            began = time.monotonic()
            asked = request(timeout_s=limit_s, idle_timeout_s=30)
            events, error = run(lambda p, asked=asked: failure(p, asked), r.provider)  # type: ignore[misc]
            took_s = time.monotonic() - began
        if len(events) >= 2:
            break
    assert error.code == "timeout"
    assert f"{limit_s:g} s" in error.message
    assert 2 <= len(events) <= limit_s * 50 + 1, "the whole would have been 3000 pieces in 60 s"
    assert limit_s <= took_s < 55


@every_wire
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200"])
def test_a_connection_that_is_lost_before_the_answer_is_cut(kind: str, head: bytes) -> None:
    """The provider had the request, and may have worked on it: it is no call that never was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with listener.accept()[0] as taken:
                taken.recv(64 * 1024)
                taken.sendall(head)

        server = threading.Thread(target=hang_up)
        server.start()
        provider = build_provider(target_of(kind, url=f"http://127.0.0.1:{listener.getsockname()[1]}"), KEY)
        events, error = run(lambda p: failure(p, request()), provider)
        server.join()
    assert (events, error.code, error.retryable) == ([], "cut", True)


@every_wire
@pytest.mark.parametrize("status", [429, 500, 529])
def test_a_refusal_within_an_answer_is_told_from_one_instead_of_it(kind: str, status: int, tmp_path: Path) -> None:
    """The first comes after work that nobody may have seen, and is not free; the second is."""
    reply = f"{{text: hello, error: {{status: {status}}}"
    for after, has_begun in (("after_chunks: 99", True), ("after_chunks: 0", False)):
        with rig(kind, tmp_path, f"turns:\n  - {reply}, {after}}}\n") as r:
            _, error = run(lambda p: failure(p, request()), r.provider)
        assert (error.retryable, error.has_begun) == (True, has_begun), error


@every_wire
def test_a_server_that_accepts_and_says_nothing_is_a_time_out(kind: str) -> None:
    """The wait for the response's head has the same limit as the waits after it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        provider = build_provider(target_of(kind, url=url), KEY)
        _, error = run(lambda p: failure(p, request(idle_timeout_s=0.3)), provider)
    assert (error.code, error.retryable) == ("timeout", True)


@every_kind
@pytest.mark.parametrize("after", [0, 2, 99])
def test_a_stream_that_breaks_off_is_cut_and_never_a_response(kind: str, after: int, tmp_path: Path) -> None:
    """What came before the cut was delivered; then the call fails, retryable, even after the last delta."""
    with rig(kind, tmp_path, f"chunk: 4\nturns:\n  - text: abcdefghijkl\n    cut: {after}\n") as r:
        events, error = run(lambda p: failure(p, request()), r.provider)
    assert [cast(TextDelta, e).text for e in events] == ["abcd", "efgh", "ijkl"][:after]
    assert (error.code, error.retryable) == ("cut", True)


@every_kind
def test_output_that_does_not_parse_is_malformed(kind: str, tmp_path: Path) -> None:
    """Garbage in the stream is an error of its own, retryable."""
    script = "chunk: 4\nturns:\n  - text: abcdefgh\n    malformed: true\n    after_chunks: 1\n"
    with rig(kind, tmp_path, script) as r:
        events, error = run(lambda p: failure(p, request()), r.provider)
    assert events == [TextDelta(text="abcd")]
    assert (error.code, error.retryable) == ("malformed", True)


@every_kind
def test_malformed_tool_arguments_are_handed_on_and_do_not_poison_the_conversation(kind: str, tmp_path: Path) -> None:
    """Bad arguments are the model's mistake: the caller sees them as written, and the next call is still valid."""
    script = """
turns:
  - tools: [{name: fs_read, arguments: {path: a/long/path.py}}]
    malformed: true
  - text: sorry
"""

    async def main(provider: Provider) -> tuple[str, object]:
        asked = UserMessage(text="go")
        _, first = await play(provider, request(asked))
        call = cast(ToolCall, first.blocks[0])
        _, second = await play(provider, request(asked, *answered(first, "arguments do not parse")))
        return call.arguments, second.blocks

    with rig(kind, tmp_path, script) as r:
        arguments, blocks = run(main, r.provider)
    assert arguments.startswith('{"path":')
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(arguments)
    assert blocks == (Text(text="sorry"),)


@every_kind
def test_an_error_in_the_middle_of_a_stream_is_translated_too(kind: str, tmp_path: Path) -> None:
    """An overloaded provider that says so after it began to answer."""
    script = "chunk: 4\nturns:\n  - text: abcdefgh\n    error: {status: 500}\n    after_chunks: 1\n"
    with rig(kind, tmp_path, script) as r:
        events, error = run(lambda p: failure(p, request()), r.provider)
    assert events == [TextDelta(text="abcd")]
    assert (error.code, error.retryable) == ("overloaded", True)


@every_kind
def test_cancelling_closes_the_connection(kind: str, tmp_path: Path) -> None:
    """The task that iterates is cancelled in the middle: it ends at once and the server sees its peer leave."""
    script = "chunk: 4\nturns:\n  - text: abcdefgh\n    stall: 60\n    after_chunks: 1\n"

    async def main(provider: Provider) -> bool:
        seen = asyncio.Event()

        async def iterate() -> None:
            async for _ in provider.stream(request(idle_timeout_s=60)):
                seen.set()

        task = asyncio.create_task(iterate())
        await seen.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: all(q.ended == "disconnected" for q in r.requests()))
        return task.cancelled()

    with rig(kind, tmp_path, script) as r:
        assert run(main, r.provider)


@every_kind
def test_leaving_a_stream_early_leaves_nothing(kind: str, tmp_path: Path) -> None:
    """A consumer that closes the stream after one event leaves no connection; the provider works on."""
    script = f"chunk: 4\ndelay_ms: 5\nturns:\n  - text: {'abcd' * 500}\n"

    async def main(provider: Provider) -> None:
        stream = cast(Any, provider.stream(request()))
        assert isinstance(await anext(stream), TextDelta)
        await stream.aclose()
        await until(lambda: all(q.ended == "disconnected" for q in r.requests()))

    with rig(kind, tmp_path, script) as r:
        run(main, r.provider)


@every_wire
def test_consecutive_calls_share_one_connection(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response is read to the end of its body, so the connection serves the next call."""
    for module in (anthropic_stream, openai_chat, openai_responses):
        monkeypatch.setattr(module, "DRAIN_S", DEADLINE_S)

    async def main(provider: Provider) -> None:
        for _ in range(3):
            await play(provider, request())

    with rig(kind, tmp_path, "turns:\n  - text: ok\n") as r:
        run(main, r.provider)
        assert len({q.client_port for q in r.requests()}) == 1


@every_wire
def test_the_request_carries_prompt_tools_and_limits(kind: str, tmp_path: Path) -> None:
    """What the caller asks for is what the server gets."""
    with rig(kind, tmp_path, "turns:\n  - text: ok\n") as r:
        run(lambda p: play(p, request(max_output_tokens=777, temperature=0.5)), r.provider)
        body = r.requests()[0].body
    limits = {"anthropic": "max_tokens", "openai-responses": "max_output_tokens", "openai-chat": "max_tokens"}
    assert body[limits[kind]] == 777
    assert body["temperature"] == 0.5
    assert body["model"] == "m-1"
    assert "You fix bugs." in json.dumps(body)
    assert "fs_read" in json.dumps(body["tools"])


@every_wire
def test_odd_conversations_are_still_valid_on_the_wire(kind: str, tmp_path: Path) -> None:
    """Empty texts, an empty answer, two users in a row and another provider's reasoning: the server accepts all."""
    call = ToolCall(call="c1", tool="fs_read", arguments="")
    conversation = (
        UserMessage(text=""),
        UserMessage(text="second"),
        AssistantMessage(blocks=()),
        UserMessage(text="third"),
        AssistantMessage(
            blocks=(Thinking(text="hm", signature="s", opaque="{}", provider="other"), Text(text=""), call)
        ),
        ToolResults(results=(ToolResult(call="c1", tool="fs_read", text="", is_error=True),)),
        UserMessage(text="fourth"),
    )
    with rig(kind, tmp_path, "loop: true\nturns:\n  - text: ok\n") as r:
        run(lambda p: play(p, request(*conversation, system="")), r.provider)
        assert "hm" not in json.dumps(r.requests()[0].body["input" if "responses" in kind else "messages"])


@every_kind
def test_a_provider_opens_nothing_until_it_is_used_and_closes_twice(kind: str, tmp_path: Path) -> None:
    """Built before the fork, it shares no socket with its siblings; closing it again is harmless."""

    async def main(provider: Provider) -> None:
        assert vars(provider).get("_client") is None
        await provider.aclose()
        await play(provider, request())
        await provider.aclose()
        await play(provider, request())

    with rig(kind, tmp_path, "turns:\n  - text: ok\n") as r:
        run(main, r.provider)
        assert r.provider.name == r.target.provider
