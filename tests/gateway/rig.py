"""A real gateway process for tests, and the HTTP client that looks at it over TCP or its unix socket."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tests.daemon.harness import wait_for

ANSWER_DEADLINE_S = 30.0


class Answer(NamedTuple):
    """A response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    text: str


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


def fetch(where: Path | int, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
    """One request, to a unix socket or to a port of 127.0.0.1. Raises OSError when nobody listens."""
    connection = (
        UnixConnection(where)
        if isinstance(where, Path)
        else http.client.HTTPConnection("127.0.0.1", where, timeout=ANSWER_DEADLINE_S)
    )
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        text = response.read().decode()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, text)
    finally:
        connection.close()


def status_of(where: Path | int, path: str) -> int:
    """The status of a request; 0 when nobody listens."""
    try:
        return fetch(where, path).status
    except (OSError, http.client.HTTPException):
        return 0


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free TCP port. It stays taken until the end, but not for a program that listens with SO_REUSEADDR."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


class GatewayProcess:
    """`python -m ottod.gateway` for a runtime directory, on its unix socket, and on a port if one is given."""

    def __init__(self, runtime_dir: Path, *arguments: str, port: int = 0, root_pid: int = 0) -> None:
        self.path = runtime_dir / "gateway.sock"
        self._log = runtime_dir.parent / f"gateway-{os.urandom(4).hex()}.log"
        command = [sys.executable, "-m", "ottod.gateway", f"--runtime-dir={runtime_dir}", "--host=127.0.0.1"]
        command += [f"--port={port}", "--socket", f"--root-pid={root_pid}", *arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return fetch(self.path, path, headers)

    def wait_status(self, path: str, status: int) -> None:
        """Polls until this gateway answers so."""

        def answers() -> bool:
            assert self.process.poll() is None, self.log
            return status_of(self.path, path) == status

        wait_for(f"{path} gives {status}", answers)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        """Signals it, and gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(ANSWER_DEADLINE_S)

    def __enter__(self) -> GatewayProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if error is not None:
            print(self.log)
