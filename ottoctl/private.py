"""A daemon of one's own: in directories that nobody else uses, for as long as it is needed.

For demonstrations, measurements and tests. It is a real daemon in a process of its own; only its place is private.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from ottoctl.client import Otto
from ottoctl.sync import SyncOtto
from ottod.errors import UnreachableError
from ottod.settings.interpreter import program

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
READY = "ready: version"
HANDED_ON = ("OTTO_BWRAP",)
"""Variables that say where a daemon finds what it needs."""


class PrivateDaemon:
    """`ottod run` in a subprocess. `base` holds all of its files, `workdir` is a place for sessions to work in."""

    def __init__(
        self,
        settings: Mapping[str, object] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="otto-"))
        self.workdir = self.base / "work"
        self.workdir.mkdir()
        self.keep = keep
        config = self.base / "otto.yml"
        # JSON is YAML; the client need not import a YAML library to write some.
        config.write_text(json.dumps(settings or {}))
        self.env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", "/"),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "OTTO_RUNTIME_DIR": str(self.base / "run"),
            "OTTO_STATE_DIR": str(self.base / "state"),
            "OTTO_CONFIG": str(config),
            "OTTO_CONFIG_HOME": str(self.base / "config"),
            **{name: os.environ[name] for name in HANDED_ON if name in os.environ},
            **(env or {}),
        }
        self.endpoint = f"ipc://{self.base}/run/control.sock"
        self.log_path = self.base / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the daemon and returns when it answers. Raises UnreachableError with its own last words."""
        before = self.log.count(READY)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                program("ottod", "run"),
                env=self.env,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self.log.count(READY) == before:
            if self.process.poll() is not None or time.monotonic() > deadline_s:
                raise UnreachableError(f"the private daemon did not start:\n{self.log}")
            time.sleep(0.01)

    @property
    def log(self) -> str:
        """What the daemon has said so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None, "the daemon was not started"
        return self.process.pid

    def client(self, timeout_s: float = 30.0) -> SyncOtto:
        """A connected client."""
        return SyncOtto.connect(self.endpoint, timeout_s=timeout_s)

    def async_client(self, timeout_s: float = 30.0) -> Otto:
        """An asynchronous client, to be entered with `async with`."""
        return Otto.connect(self.endpoint, timeout_s=timeout_s)

    def stop(self) -> int:
        """Stops the daemon, with its sessions, and gives its exit status."""
        assert self.process is not None, "the daemon was not started"
        self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def close(self) -> None:
        """Stops the daemon if it runs, and removes its directories unless they are to be kept."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        if not self.keep:
            shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> PrivateDaemon:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
