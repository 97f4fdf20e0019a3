"""Ways to start a session's process from Python: multiprocessing's fork server and spawn, and circus.

A start blocks its caller for milliseconds, so each starter has one thread of its own and the hub's loop none of it.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.py import session

ROOT = Path(__file__).parents[3]
CIRCUS_TIMEOUT_S = 30
CIRCUS_RETRY_S = 0.02


class Starter(Protocol):
    """Starts sessions that will connect to the hub by themselves."""

    def start(self, number: int) -> None: ...

    def replace(self, number: int) -> None: ...

    def close(self) -> None: ...


def starter(method: str, *, path: str, lowered: bool, sdk: bool) -> Starter:
    """The starter of that name."""
    if method == "circus":
        return Circus(path=path, lowered=lowered, sdk=sdk)
    return Multiprocessing(method, path=path, lowered=lowered, sdk=sdk)


class Multiprocessing:
    """multiprocessing's `forkserver` (modules preloaded in the server) or `spawn`."""

    def __init__(self, method: str, *, path: str, lowered: bool, sdk: bool) -> None:
        self._context: Any = multiprocessing.get_context(method)
        self._arguments = (path, lowered, sdk)
        self._processes: dict[int, Any] = {}
        self._thread = ThreadPoolExecutor(1)
        if method == "forkserver":
            sdks = ["anthropic", "openai"] if sdk else []
            self._context.set_forkserver_preload(["benchmarks.peers.py.session", *sdks])

    def start(self, number: int) -> None:
        """Orders a process for session `number`."""
        self._thread.submit(self._start, number)

    replace = start

    def _start(self, number: int) -> None:
        path, lowered, sdk = self._arguments
        before = self._processes.get(number)
        process = self._context.Process(target=session.main, args=(path, number, lowered, sdk), daemon=True)
        process.start()
        self._processes[number] = process
        if before is not None:
            before.join()

    def close(self) -> None:
        """Ends all processes."""
        self._thread.shutdown(cancel_futures=True)
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()


class Circus:
    """A watcher per session, added to a circusd of our own; circus itself notices a death and restarts."""

    def __init__(self, *, path: str, lowered: bool, sdk: bool) -> None:
        from circus.client import CircusClient

        place = Path(path).parent
        endpoints = {name: f"ipc://{place}/circus-{name}" for name in ("endpoint", "pubsub_endpoint")}
        config = place / "circus.ini"
        lines = ["[circus]", "check_delay = 1", *(f"{key} = {value}" for key, value in endpoints.items())]
        config.write_text("\n".join(lines) + "\n")
        self._daemon = subprocess.Popen([sys.executable, "-m", "circus.circusd", "--log-level", "ERROR", str(config)])
        self._client = CircusClient(endpoint=endpoints["endpoint"], timeout=CIRCUS_TIMEOUT_S)
        self._thread = ThreadPoolExecutor(1)
        self._arguments = [path, "{number}", "1" if lowered else "0", "1" if sdk else "0"]

    def start(self, number: int) -> None:
        """Orders a watcher for session `number`."""
        self._thread.submit(self._start, number)

    def _start(self, number: int) -> None:
        arguments = [part.replace("{number}", str(number)) for part in self._arguments]
        command = [sys.executable, "-m", "benchmarks.peers.py.session", *arguments]
        options = {"working_dir": str(ROOT), "copy_env": True, "warmup_delay": 0, "graceful_timeout": 1}
        properties = {"name": f"s{number}", "cmd": " ".join(command), "start": True, "options": options}
        # circusd carries out one command at a time and refuses another one meanwhile.
        deadline_s = time.monotonic() + CIRCUS_TIMEOUT_S
        while time.monotonic() < deadline_s:
            answer = self._client.send_message("add", **properties)
            if answer["status"] == "ok" or "already exist" in answer.get("reason", ""):
                return
            time.sleep(CIRCUS_RETRY_S)

    def replace(self, number: int) -> None:
        """Nothing: replacing is what circus is for."""

    def close(self) -> None:
        """Ends circusd, and with it all watchers."""
        self._thread.shutdown(cancel_futures=True)
        self._client.call({"command": "quit", "properties": {"waiting": True}})
        self._client.stop()
        self._daemon.wait(CIRCUS_TIMEOUT_S)
