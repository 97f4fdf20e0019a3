"""The fake itself: it refuses what the real APIs refuse, and runs as a program."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.wire_app import KEY
from tests.fakes.wire_server import WireServer

USER = {"role": "user", "content": [{"type": "text", "text": "x"}]}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}]}
CHAT_USER = {"role": "user", "content": "x"}
CHAT_CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "t", "type": "function", "function": {"name": "n", "arguments": "{}"}}],
}
CHAT = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
ITEM_USER = {"type": "message", "role": "user", "content": "x"}
ITEM_CALL = {"type": "function_call", "call_id": "t", "name": "n", "arguments": "{}"}


def post(url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), {"authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "body", "complaint"),
    [
        ("/v1/messages", {"messages": [USER]}, "max_tokens"),
        ("/v1/messages", {"max_tokens": 1, "messages": [USER, USER]}, "alternate"),
        ("/v1/messages", {"max_tokens": 1, "messages": [USER, CALL, USER]}, "tool_result"),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": []}]}, "empty"),
        ("/v1/chat/completions", CHAT | {"messages": [CHAT_USER, CHAT_CALL]}, "no answer"),
        ("/v1/chat/completions", CHAT | {"messages": [CHAT_USER, CHAT_CALL, CHAT_USER]}, "no answer"),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "tool", "tool_call_id": "z"}]}, "no open tool call"),
        ("/v1/responses", {"store": False, "input": [ITEM_USER, ITEM_CALL]}, "no tool output"),
        ("/v1/responses", {"store": True, "input": [ITEM_USER]}, "stored"),
    ],
)
def test_it_refuses_what_the_real_apis_refuse(
    path: str, body: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    """The contract suite is worth what these checks are worth."""
    script = tmp_path / "s.yml"
    script.write_text("turns:\n  - text: hi\n")
    with WireServer(script) as server:
        status, said = post(server.url, path, {"model": "m", "stream": True, **body})
    assert status == 400
    assert complaint in said


def test_it_leaves_neither_thread_nor_socket_even_with_a_request_open(tmp_path: Path) -> None:
    """Closing ends a stalled stream at once."""
    script = tmp_path / "s.yml"
    script.write_text("turns:\n  - {text: hi, stall: 300}\n")
    before = set(threading.enumerate())
    with WireServer(script) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
        body = json.dumps(CHAT | {"messages": [CHAT_USER]})
        connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        assert answer.status == 200
    answer.close()
    connection.close()
    assert set(threading.enumerate()) <= before


def test_it_runs_as_a_program(tmp_path: Path) -> None:
    """It says where it listens in one line, serves, shows what it was asked without the key, and ends on SIGTERM."""
    script = tmp_path / "s.yml"
    script.write_text("turns:\n  - text: hi there\n")
    command = [
        sys.executable,
        "-m",
        "tests.fakes.wire_server",
        "--port",
        "0",
        "--scenario",
        str(script),
        "--key",
        KEY,
    ]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            status, said = post(url, "/v1/chat/completions", CHAT | {"messages": [CHAT_USER]})
            assert (status, "hi there" in said, said.endswith("data: [DONE]\n\n")) == (200, True, True)
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
            connection.request("GET", "/requests")
            shown = connection.getresponse().read().decode()
            connection.close()
            assert json.loads(shown)[0]["ended"] == "answered"
            assert KEY not in shown
        finally:
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=60)
    assert (server.returncode, out, err) == (0, "", "")
