"""The environment of these tests: loopback only, and no settings of the person who runs them."""

from __future__ import annotations

import pytest

FOREIGN = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would carry loopback requests away; the SDKs read these variables by themselves."""
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
