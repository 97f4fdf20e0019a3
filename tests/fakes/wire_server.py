"""A local HTTP server that speaks the wire formats of the real APIs and plays a script through them.

    POST /v1/messages             Anthropic Messages
    POST /v1/responses            OpenAI Responses
    POST /v1/chat/completions     OpenAI Chat Completions
    GET  /requests                what was asked so far, as JSON, without keys

It takes the scripts that the scripted provider takes, checks every request as the real API would, and answers 400
where that would. Faults are real: a cut closes the connection in the middle of the body, a stall keeps it open.

As a program it prints one line of JSON with its base URL once it listens, and serves until SIGTERM or SIGINT:

    python -m tests.fakes.wire_server --port 0 --scenario FILE [--key KEY]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import uvicorn

from ottod.settings.script import load_script
from tests.fakes.wire_app import KEY, Recorded, WireApp

START_S = 60.0
STOP_S = 60.0


class WireServer:
    """The server in a thread of its own. A context manager: when it is left, thread and sockets are gone."""

    def __init__(
        self, script: Path | str, *, key: str = KEY, port: int = 0, make_app: Callable[..., WireApp] = WireApp
    ) -> None:
        self.app = make_app(load_script(script), Path(script).parent, key)
        self._socket = socket.create_server(("127.0.0.1", port))
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="wire-server")
        self._loop: asyncio.AbstractEventLoop
        self._server: uvicorn.Server

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`, without a path."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def requests(self) -> list[Recorded]:
        """What was asked, oldest first."""
        return list(self.app.requests)

    def __enter__(self) -> WireServer:
        self._thread.start()
        if not self._ready.wait(START_S):
            raise TimeoutError("the wire server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(STOP_S)
        self._socket.close()
        if self._thread.is_alive():
            raise TimeoutError("the wire server did not stop")

    def _stop(self) -> None:
        self.app.closing.set()
        self._server.should_exit = True

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                self.app,
                lifespan="off",
                log_config=None,
                log_level=1000,
                access_log=False,
                ws="none",
                http="h11",
                timeout_graceful_shutdown=5,
            )
        )
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not (self._server.started or serving.done()):
            await asyncio.sleep(0.005)
        self._ready.set()
        await serving


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="wire_server", description="Plays a script over the real wire formats.")
    parser.add_argument("--scenario", required=True, help="a script, as the scripted provider takes it")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--key", default="", help="the only key to accept; all are, by default")
    options = parser.parse_args()
    # Blocked before the thread starts, so that the signal waits for sigwait wherever it is delivered.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with WireServer(options.scenario, key=options.key, port=options.port) as server:
        print(json.dumps({"url": server.url, "port": int(server.url.rpartition(":")[2])}), flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
