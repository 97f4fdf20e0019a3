"""A real daemon for tests: own directories, own sockets, and a proof at the end that nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import yaml

from ottoctl.private import PrivateDaemon
from ottod.isolation.processes import ProcessId, descendants, identify, is_alive, send_signal
from ottod.protocol.specs import AgentSpec

T = TypeVar("T")
DEADLINE_S = 60.0
SMALL: dict[str, dict[str, object]] = {
    "ring": {"size_bytes": 4 * 1024 * 1024, "segment_bytes": 128 * 1024},
    "sessions": {"orphan_grace_s": 15, "worker_priority": "normal"},
}
"""Settings that keep a test's files small and its leftovers short-lived.

Other tests keep all cores busy: workers that only have what nobody else wants would hardly run at all beside them.
"""


def wait_for(what: str, probe: Callable[[], T | None], deadline_s: float = DEADLINE_S) -> T:
    """Polls until `probe` gives something true; fails with `what` when the deadline has passed."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {deadline_s} s")
        time.sleep(0.01)


def files_below(directory: Path) -> Iterator[Path]:
    """All files, also while the daemon tidies up behind sessions that have ended."""
    for place, _, names in os.walk(directory):
        yield from (path for name in names if (path := Path(place, name)).is_file())


def content(path: Path) -> bytes:
    """What is in the file; nothing, if it is gone by now."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


class RealDaemon(PrivateDaemon):
    """A private daemon that remembers its processes and proves their end."""

    def __init__(self, settings: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None) -> None:
        merged: dict[str, object] = dict(SMALL)
        for section, values in (settings or {}).items():
            small = SMALL.get(section)
            merged[section] = {**small, **values} if small and isinstance(values, Mapping) else values
        super().__init__(merged, env={"PYTHONWARNINGS": "error", **(env or {})})
        self.seen: set[ProcessId] = set()

    @property
    def zygote(self) -> ProcessId:
        """The zygote's process."""

        def find() -> ProcessId | None:
            with self.client() as otto:
                pid = otto.status().zygote_pid
            return identify(pid) if pid else None

        return wait_for("a zygote", find)

    def script(self, name: str, *turns: Mapping[str, object], **top: object) -> str:
        """Writes a scripted model into the working directory; gives the model name that plays it."""
        path = self.workdir / f"{name}.script.yml"
        # An earlier session may be reading it: it has all of the old one or all of the new.
        fresh = path.with_suffix(".fresh")
        fresh.write_text(yaml.safe_dump({"turns": list(turns), **top}))
        fresh.replace(path)
        return f"scripted:{path}"

    def agent(self, model: str, *tools: str, **fields: object) -> AgentSpec:
        """An inline agent that answers with a script."""
        return AgentSpec(name="tester", model=model, tools=tools, **fields)  # type: ignore[arg-type]

    def processes(self) -> list[ProcessId]:
        """Everything below the daemon now; remembered for the proof at the end."""
        found = descendants(self.pid)
        self.seen.update(found)
        return found

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.processes()
        return super().stop()

    def kill(self) -> None:
        """SIGKILL, as a crash of root."""
        self.processes()
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _end_orphans(self) -> None:
        """Workers outlive a root that was killed; nobody will adopt these any more."""
        if self.process is not None and self.process.returncode not in (None, 0):
            for process in self.seen:
                if is_alive(process):
                    send_signal(process, signal.SIGTERM)

    def close(self) -> None:
        """Ends everything and proves it: no process of the daemon is left, no socket, no directory."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
            self._end_orphans()
            wait_for("all processes are gone", lambda: not [p for p in self.seen if is_alive(p)])
            left = [str(p) for p in (self.base / "run").glob("*.sock")] if self.process is not None else []
            status = self.process.returncode if self.process is not None else 0
            assert status != 0 or not left, f"sockets were left: {left}"
        finally:
            for process in [p for p in self.seen if is_alive(p)]:
                psutil.Process(process.pid).send_signal(signal.SIGKILL)
            shutil.rmtree(self.base)


@contextmanager
def running_daemon(
    settings: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[RealDaemon]:
    """A daemon that is running, and that is gone afterwards."""
    daemon = RealDaemon(settings, env)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()
