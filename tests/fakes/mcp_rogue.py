"""An MCP server written by hand, without the SDK, that misbehaves on demand. It runs as a program of its own.

    python mcp_rogue.py [MODE]      die, mute, chatter, endless, unlisted, garbage, brief, deaf, asks, echoes

Its tools: echo, env, pid, crash, stall, flood, big, child, reach, wrong, refuse.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

MODE = sys.argv[1] if len(sys.argv) > 1 else ""
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
TOOLS: list[dict[str, Any]] = [
    {"name": "echo", "inputSchema": TEXT, "description": "Says it again.", "annotations": {"readOnlyHint": True}},
    *(
        {"name": name, "inputSchema": TEXT}
        for name in ("env", "pid", "crash", "stall", "flood", "big", "child", "reach", "wrong", "refuse")
    ),
    {
        "name": "files/at",
        "inputSchema": {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/P"}},
            "$defs": {"P": {"type": "object", "properties": {"x": {"type": "number"}}}},
        },
    },
]
lock = threading.Lock()


def send(message: dict[str, Any]) -> None:
    with lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}], **more}


def chatter() -> None:
    while True:
        send({"method": "notifications/message", "params": {"level": "info", "data": "x" * 100}})


def ask() -> None:
    number = 0
    while True:
        send({"id": f"ask-{number if MODE == 'asks' else 0}", "method": "ping"})
        number += 1


def reach(port: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
            return "reached"
    except OSError as error:
        return f"not reached: {error.strerror}"


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    value = str(arguments.get("text", ""))
    match name:
        case "env":
            return text(os.environ.get(value, "(unset)"))
        case "pid":
            return text(str(os.getpid()))
        case "crash":
            sys.stderr.write("cannot go on\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        case "stall":
            time.sleep(3600)
        case "flood":
            for _ in range(2000):
                send({"method": "notifications/message", "params": {"level": "info", "data": "x" * 1000}})
        case "big":
            return text("b" * int(value))
        case "child":
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            return text(str(child.pid))
        case "reach":
            return text(reach(value))
        case "wrong":
            return {"content": "this is no list"}
        case "refuse":
            return text("no such ticket", isError=True)
    return text(value)


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    match message.get("method"):
        case "initialize":
            return {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {"listChanged": True}},
                "serverInfo": {"name": "rogue", "version": "1"},
            }
        case "tools/list" if MODE == "unlisted":
            time.sleep(3600)
        case "tools/list":
            return {"tools": TOOLS}
        case "tools/call":
            return call(message["params"]["name"], message["params"].get("arguments") or {})
    return None


def main() -> None:
    if MODE == "die":
        sys.exit("no configuration found")
    if MODE in ("mute", "deaf"):
        time.sleep(3600)
    if MODE == "chatter":
        threading.Thread(target=chatter, daemon=True).start()
    if MODE == "garbage":
        sys.stdout.write("Starting up…\n{]\n\n")
    if MODE == "endless":
        sys.stdout.write("x" * (9 * 1024 * 1024))
        sys.stdout.flush()
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            if MODE == "brief" and message["method"] == "notifications/initialized":
                threading.Timer(1.0, os._exit, (3,)).start()
            continue
        result = answer(message)
        if result is None:
            send({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})
        else:
            send({"id": message["id"], "result": result})
        if MODE in ("asks", "echoes") and message["method"] == "tools/list":
            ask()  # From now on it does not listen.


main()
