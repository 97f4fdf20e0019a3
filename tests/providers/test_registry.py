"""The table of providers, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ottod.errors import ConfigError
from ottod.protocol.specs import ModelTarget
from ottod.providers.registry import build_provider
from tests.fakes.wire_server import WireServer

FAMILIES = ("anthropic", "openai", "httpx2", "httpcore2", "h11", "anyio", "truststore", "pydantic", "genai_prices")

LOADED = f"""
import json, sys
FAMILIES = {FAMILIES!r}
def loaded():
    return {{m for m in sys.modules if m.split(".")[0] in FAMILIES}}
"""

FIRST_CALLS = """
import asyncio
from ottod.providers.registry import ADAPTERS, build_provider, preload
preload(ADAPTERS)
before = loaded()
from ottod.protocol.model import ModelRequest, UserMessage
from ottod.protocol.specs import ModelTarget
async def call(adapter, api, url):
    provider = build_provider(ModelTarget(provider="p", adapter=adapter, api=api, model="m", base_url=url), "k")
    async for _ in provider.stream(ModelRequest(model="m", messages=(UserMessage(text="x"),))):
        pass
    await provider.aclose()
url = sys.argv[1]
asyncio.run(call("anthropic", "responses", url))
for api in ("responses", "chat"):
    asyncio.run(call("openai", api, url + "/v1"))
print(json.dumps(sorted(loaded() - before)))
"""


def _python(program: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", LOADED + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    modules: list[str] = json.loads(done.stdout)
    return modules


def test_the_registry_and_the_scripted_provider_load_no_sdk(tmp_path: Path) -> None:
    """A process that only needs the table, or only plays scripts, never pays for an SDK."""
    script = tmp_path / "script.yml"
    script.write_text("turns:\n  - text: hi\n")
    program = """
from ottod.providers.registry import build_provider
from ottod.protocol.specs import ModelTarget
build_provider(ModelTarget(provider="scripted", adapter="scripted", model=sys.argv[1]))
print(json.dumps(sorted(loaded() & {"anthropic", "openai", "pydantic", "genai_prices"})))
"""
    assert _python(program, str(script)) == []


def test_after_preload_a_first_call_imports_nothing(tmp_path: Path) -> None:
    """Workers share what the zygote loaded: a call with either SDK finds every module there."""
    script = tmp_path / "script.yml"
    script.write_text("loop: true\nturns:\n  - text: hi\n")
    with WireServer(script, key="") as server:
        assert _python(FIRST_CALLS, server.url) == []


def test_preload_starts_no_thread() -> None:
    """What is loaded is forked, and threads do not survive a fork."""
    program = """
import os
from ottod.providers.registry import ADAPTERS, preload
preload(ADAPTERS)
print(json.dumps(os.listdir("/proc/self/task")[1:]))
"""
    assert _python(program) == []


def test_a_wrong_script_is_refused_when_the_provider_is_built(tmp_path: Path) -> None:
    """Not in the middle of a session: at once, with file, line and column."""
    script = tmp_path / "bad.yml"
    script.write_text("turns:\n  - txet: hi\n")
    with pytest.raises(ConfigError) as caught:
        build_provider(ModelTarget(provider="scripted", adapter="scripted", model=str(script)))
    assert caught.value.message.startswith(f"{script}:2:5: unknown key 'txet'")
