"""Programs that root runs for itself: their failure is heard as one, whoever else waits for root's children."""

from __future__ import annotations

from pathlib import Path

import pytest

from ottod.errors import RefusedError
from ottod.protocol.requests import UpgradeDaemon
from tests.daemon.harness import RealDaemon, wait_for

LINGER = "/bin/sleep 0.5 & "
"""What holds the output of a program that has ended: whoever waits for that comes late for its status."""


def test_what_fails_is_no_success(tmp_path: Path) -> None:
    """A bubblewrap that does not work is no sandbox, and half an upgrade is refused: the daemon stays what it is."""
    bwrap = tmp_path / "bin" / "bwrap"
    bwrap.parent.mkdir()
    bwrap.write_text(f"#!/bin/sh\n{LINGER}echo no namespace today >&2\nexit 1\n")
    bwrap.chmod(0o755)
    site = tmp_path / "site"
    site.mkdir()
    daemon = RealDaemon(env={"OTTO_BWRAP": str(bwrap), "PYTHONPATH": str(site)})
    try:
        daemon.start()
        with daemon.client() as otto:
            found = wait_for("the layers are tried", lambda: otto.status().isolation)
            assert found["sandbox"].startswith("no: no namespace today") and found["network"].startswith("no: ")
            before = otto.status().instance
            (site / "ottod").mkdir()
            (site / "ottod" / "__init__.py").write_text(
                f"import os\nos.system({LINGER!r})\nraise ImportError('half an upgrade')\n"
            )
            with pytest.raises(RefusedError, match=r"cannot run: ImportError: half an upgrade") as refused:
                otto.connection.call(UpgradeDaemon())
            assert refused.value.code == "bad_upgrade"
            # One that ends well and is another program.
            (site / "ottod" / "__init__.py").write_text("import os\nos._exit(0)\n")
            with pytest.raises(RefusedError, match="did not say that it is in order"):
                otto.connection.call(UpgradeDaemon())
            assert otto.status().instance == before
        assert daemon.stop() == 0
    finally:
        daemon.close()
