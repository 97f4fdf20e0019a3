"""What only the scripted provider does: real crashes, markers, measured emission, the end of the script."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ottod.protocol.model import AssistantMessage, Text, TextDelta, UserMessage
from ottod.providers.registry import build_provider
from tests.fakes.wire_rig import failure, play, request, rig, run, target_of

PLAY = """
import asyncio, sys
from ottod.protocol.model import ModelRequest, TextDelta, UserMessage
from ottod.protocol.specs import ModelTarget
from ottod.providers.registry import build_provider
async def main():
    provider = build_provider(ModelTarget(provider="s", adapter="scripted", model=sys.argv[1]))
    async for event in provider.stream(ModelRequest(model="m", messages=(UserMessage(text="go"),))):
        if isinstance(event, TextDelta):
            print(event.text, flush=True)
asyncio.run(main())
"""


def _play_in_process(script: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PLAY, str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("order", "status"),
    [("SIGKILL", -signal.SIGKILL), ("SIGSEGV", -signal.SIGSEGV), ("exit 3", 3)],
)
def test_a_crash_kills_the_process_that_plays_it(order: str, status: int, tmp_path: Path) -> None:
    """After the chunks before it were heard, the process is gone, by the signal or status ordered."""
    script = tmp_path / "s.yml"
    script.write_text(f"chunk: 4\nturns:\n  - text: abcdefgh\n    crash: {order}\n    after_chunks: 1\n")
    done = _play_in_process(script)
    assert (done.returncode, done.stdout) == (status, "abcd\n")


def test_a_marked_fault_strikes_once_whatever_processes_come_and_go(tmp_path: Path) -> None:
    """The marker outlives the crash: the next incarnation plays the same turn to its end."""
    script = tmp_path / "s.yml"
    script.write_text("turns:\n  - {text: alive, crash: SIGKILL, marker: struck}\n")
    assert _play_in_process(script).returncode == -signal.SIGKILL
    assert (tmp_path / "struck").exists()
    again = _play_in_process(script)
    assert (again.returncode, again.stdout) == (0, "alive\n")


def test_a_marker_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Not a silent fault, and not a silent success."""
    with rig("scripted", tmp_path, "turns:\n  - {text: a, cut: 0, marker: no/such/dir}\n") as r:
        _, error = run(lambda p: failure(p, request()), r.provider)
    assert (error.code, error.retryable) == ("bad_request", False)
    assert "no/such/dir" in error.message


def test_the_script_ends_with_words_not_with_an_error(tmp_path: Path) -> None:
    """Past its last turn the model says that the script is over."""
    with rig("scripted", tmp_path, "turns:\n  - text: only\n") as r:
        asked = request(UserMessage(text="x"), AssistantMessage(blocks=()), UserMessage(text="y"))
        _, response = run(lambda p: play(p, asked), r.provider)
    assert response.stop == "end"
    assert response.blocks == (Text(text="The script script.yml has ended: it has no turn 2."),)


def test_the_same_request_gives_the_same_response_in_a_new_process(tmp_path: Path) -> None:
    """Position is in the request: a fresh provider plays turn two when one answer is already there."""
    with rig("scripted", tmp_path, "turns:\n  - text: one\n  - text: two\n    tools: [{name: t}]\n") as r:
        asked = request(UserMessage(text="x"), AssistantMessage(blocks=(Text(text="one"),)))
        _, first = run(lambda p: play(p, asked), r.provider)
        _, second = run(lambda p: play(p, asked), build_provider(r.target))
    assert first == second
    assert first.blocks[0] == Text(text="two")


def test_no_fitting_alternative_fails_loudly(tmp_path: Path) -> None:
    """A demonstration that went another way than its script is an error, not a wrong answer."""
    with rig("scripted", tmp_path, "turns:\n  - {text: a, when: {user_contains: zebra}}\n") as r:
        _, error = run(lambda p: failure(p, request()), r.provider)
    assert (error.code, error.retryable) == ("bad_request", False)
    assert "no alternative" in error.message


@pytest.mark.parametrize("rate_hz", [0, 500])
def test_measured_emission_says_when_it_was_due_and_when_it_left(rate_hz: int, tmp_path: Path) -> None:
    """Every delta holds two times and its number; the schedule is exact, and nothing leaves before it is due."""
    script = f"turns:\n  - stream: {{events: 100, rate_hz: {rate_hz}, text_bytes: 80}}\n"
    with rig("scripted", tmp_path, script) as r:
        before_ns = time.monotonic_ns()
        events, response = run(lambda p: play(p, request()), r.provider)
        after_ns = time.monotonic_ns()
    texts = [e.text for e in events if isinstance(e, TextDelta)]
    assert [len(t) for t in texts] == [80] * 100
    rows = [[int(field) for field in t.split()] for t in texts]
    assert [i for _, _, i in rows] == list(range(100))
    assert before_ns <= rows[0][0] <= rows[-1][1] <= after_ns
    assert all(scheduled <= actual for scheduled, actual, _ in rows)
    if rate_hz:
        assert [row[0] - rows[0][0] for row in rows] == [i * 2_000_000 for i in range(100)]
    assert response.stop == "end"


def test_measured_emission_at_full_speed_lets_others_run(tmp_path: Path) -> None:
    """With rate_hz 0 the loop still turns every 64 events."""

    async def main(provider: object) -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counter = asyncio.create_task(count())
        await play(r.provider, request())
        counter.cancel()
        await asyncio.wait([counter])
        return turns

    with rig("scripted", tmp_path, "turns:\n  - stream: {events: 6400, rate_hz: 0}\n") as r:
        assert run(main, r.provider) >= 100


def test_a_spin_blocks_the_loop_and_a_leak_is_real(tmp_path: Path) -> None:
    """Faults for the benches: the loop stands still for as long as asked; leaked memory is resident."""

    async def main(provider: object) -> tuple[float, int]:
        began = time.monotonic()
        await play(r.provider, request())
        spun_s = time.monotonic() - began
        before = _resident_bytes()
        await play(r.provider, request(UserMessage(text="x"), AssistantMessage(blocks=())))
        return spun_s, _resident_bytes() - before

    with rig("scripted", tmp_path, "turns:\n  - {text: a, spin: 0.2}\n  - {text: b, leak_bytes: 32 MiB}\n") as r:
        spun_s, grown_bytes = run(main, r.provider)
    assert spun_s >= 0.2
    assert grown_bytes >= 24 * 1024 * 1024


def test_usage_is_estimated_when_the_script_says_none(tmp_path: Path) -> None:
    """Four characters a token, so that budgets have something to count."""
    with rig("scripted", tmp_path, "turns:\n  - text: abcdefgh\n") as r:
        _, response = run(lambda p: play(p, request(UserMessage(text="x" * 10), system="12")), r.provider)
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.calls) == (3, 2, 1)


def test_the_provider_has_the_name_of_its_configuration(tmp_path: Path) -> None:
    """Not the adapter's: two providers may share an adapter."""
    script = tmp_path / "s.yml"
    script.write_text("turns:\n  - text: a\n")
    assert build_provider(target_of("scripted", script=script, provider="demo")).name == "demo"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
