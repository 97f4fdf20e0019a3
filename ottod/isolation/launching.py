"""The worker's end of its launcher: starts the process, sends orders, and ends it by closing the socket."""

from __future__ import annotations

import marshal
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ottod.isolation import confined_exec
from ottod.isolation.running import MAX_PACKET_BYTES, Ending, parse_ending

LAUNCHER = str(Path(__file__).with_name("launcher.py"))
END_DEADLINE_S = 12.0
"""How long the launcher may take to end what it still runs: more than its own deadlines for that together."""


class LauncherClient:
    """One launcher process. `config`: see `launch_config.launch_config`. Raises OSError if it cannot be started."""

    def __init__(self, config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        config_fd = confined_exec.in_memory("otto-launch", marshal.dumps(dict(config)))
        self._orders, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", LAUNCHER, str(far_end.fileno()), str(config_fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=(far_end.fileno(), config_fd),
                start_new_session=True,
            )
        except OSError:
            self._orders.close()
            raise
        finally:
            os.close(config_fd)
            far_end.close()
        # A launcher that hangs must not hang the worker's loop; its socket holds many orders.
        self._orders.setblocking(False)

    @property
    def pid(self) -> int:
        """The launcher's process."""
        return self._process.pid

    def run(self, control: int, order: int, cwd: int, streams: Sequence[int]) -> None:
        """Orders one program; what becomes of it is said on `control`. Raises OSError if the launcher is gone.

        `streams`: its standard input, its output, and its errors if they are to be apart.
        """
        socket.send_fds(self._orders, [b"run"], [control, order, cwd, *streams])

    def sweep(self, call: str, *, timeout_s: float) -> Ending:
        """Has everything ended that a call without a keeper left. Blocks; without an answer nothing is proved."""
        control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with control:
            try:
                with far_end:
                    socket.send_fds(self._orders, [f"sweep {call}".encode()], [far_end.fileno()])
                control.settimeout(timeout_s)
                word, *rest = control.recv(MAX_PACKET_BYTES).decode().split() or [""]
            except OSError:
                return Ending()
        return parse_ending(word, rest)

    def close(self) -> None:
        """Lets the launcher end everything and go. Blocks until it has, at most END_DEADLINE_S."""
        self._orders.close()
        try:
            self._process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            try:
                self._process.kill()
                self._process.wait()
            except PermissionError:
                pass  # A confined worker may not signal it; whoever buries the session ends it.
