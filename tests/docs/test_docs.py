"""The documentation does not lie: its examples run, its links lead somewhere, its lists agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml

from ottoctl.private import PrivateDaemon
from ottod.protocol.specs import AgentSpec
from ottod.settings import daemon as daemon_settings
from ottod.settings.agent_file import check_agent
from ottod.settings.script import load_script
from ottod.settings.sections import DaemonSettings
from tests.docs.markdown import PAGES, ROOT, Block, anchors, blocks, commands, links
from tests.docs.rehearsal import Rehearsal, is_keyless, matches, steps
from tests.fakes.wire_server import WireServer

LIMITS = ROOT / "docs/explanation/limits.md"
OWN_MODELS = ROOT / "docs/how-to/use-a-local-model-server.md"
SERVICE = ROOT / "docs/how-to/run-as-a-service.md"
"""Needs systemd; `make vm-test` takes its steps."""
PLAYED = [page for page in PAGES if steps(page)]
BLOCKS = [block for page in PAGES for block in blocks(page)]

MACHINE_PATH = re.compile(r"(?<![\w.~$])/(?:work|root|home/\w|Users/\w|tmp/(?!otto-UID))[\w/.-]*")
INDEX_HOST = re.compile(r"\bpypi\.|pythonhosted|\bconda\.|registry\.npmjs")
CONSUMED_BY_SETTINGS = {"models", "providers", "secrets", "env", "isolation", "project_may"}
"""Sections of the daemon's file that `ottod.settings` turns into something else before anybody reads them."""
LOADER_FIELDS = {"name", "digest", "source"}


def ids(value: Any) -> str:
    """A parameter's name."""
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else value.place


@pytest.mark.real
@pytest.mark.parametrize("page", PLAYED, ids=ids)
def test_the_examples_run_as_they_stand(page: Path) -> None:
    """Every marked block of a page can be typed in order beside a real daemon, and prints what the page says."""
    rehearsal = Rehearsal(page)
    try:
        differences = rehearsal.run()
    finally:
        rehearsal.daemon.close()
    assert not differences, "\n\n".join(differences)


def test_the_pages_that_a_newcomer_reads_are_played() -> None:
    """README, quickstart and the how-tos that need no server of their own have examples that run."""
    played = {ids(page) for page in PLAYED}
    how_to = {ids(page) for page in PAGES if page.parent.name == "how-to"} - {ids(OWN_MODELS), ids(SERVICE)}
    assert {"README.md", "docs/quickstart.md"} | how_to <= played


def test_pages_that_anybody_can_follow_say_so() -> None:
    """Which is what has them played without any model but the scripts that they bring."""
    keyless = {ids(page) for page in PLAYED if is_keyless(page)}
    assert {"README.md", "docs/quickstart.md", "docs/how-to/supervise-sessions.md"} <= keyless


def test_a_difference_is_seen() -> None:
    """The comparison lets ids, times and `…` differ and nothing else."""
    said = ["started ottod (pid 1)", "✓ shell ls · 3 12ms", "done s-abcde12345"]
    assert matches(["started ottod (pid 28645)", "✓ shell … · 3 1.5s", "done s-7f3k2m9qxa"], said)
    assert matches(["started ottod (pid 2)", "…", "done s-7f3k2m9qxa"], said)
    assert not matches(["started ottod (pid 2)", "done s-7f3k2m9qxa"], said)
    assert not matches(["started ottod (pid 2)", "✓ shell ls · 4 12ms", "done s-7f3k2m9qxa"], said)
    assert not matches(said[:2], said)


@pytest.mark.real
def test_the_settings_for_a_server_of_ones_own_work(tmp_path: Path) -> None:
    """The page's configuration, with another port, gets an agent's answer out of a server that speaks the API."""
    script = tmp_path / "script.yml"
    script.write_text("turns:\n  - tools: [{name: fs_list, arguments: {}}]\n  - text: 'There: ${last_tool_result}'\n")
    (block,) = [block for block in blocks(OWN_MODELS) if block.argument == "settings"]
    with WireServer(script, key="") as server:
        text = block.text.replace("http://127.0.0.1:8080", server.url)
        assert text != block.text
        with PrivateDaemon(yaml.safe_load(text)) as daemon, daemon.client() as otto:
            (daemon.workdir / "a.txt").touch()
            result = otto.run("assistant", "What is here?", cwd=daemon.workdir)
    assert (result.ok, result.result, result.model) == (True, "There: a.txt", "local:qwen-coder"), result.cause


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=ids)
def test_yaml_is_what_it_says(block: Block, tmp_path: Path) -> None:
    """Every YAML block parses, and whole files are valid agents, settings or scripts."""
    assert yaml.safe_load(block.text) is not None
    file = tmp_path / (Path(block.argument).name if block.mark == "file" else "example.yml")
    file.write_text(block.text)
    if ".otto/agents/" in block.argument and file.stem != "wrong":
        spec, errors = check_agent(file)
        assert spec is not None, errors
    elif ".otto/scripts/" in block.argument or "turns:" in block.text:
        load_script(file)
    elif block.argument == "settings":
        assert isinstance(daemon_settings.check(file), DaemonSettings)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=ids)
def test_python_compiles(block: Block) -> None:
    """Every Python block is Python, also where it is an excerpt with `await` in it."""
    body = "".join(f"    {line}\n" for line in block.text.splitlines())
    compile(f"async def excerpt():\n{body}", block.place, "exec")


def test_commands_exist() -> None:
    """Every `ottoctl` command and option, and every make target, that a page tells to type is there."""
    import typer

    from ottoctl.application import build_app

    app: Any = typer.main.get_command(build_app())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    typed = [(b, c.text) for b in BLOCKS if b.language == "console" for c in commands(b)]
    assert len(typed) > 30
    for block, text in typed:
        if make := re.match(r"(?:[A-Z]+=\S+ )*make ([a-z]+)", text):
            assert make[1] in targets, f"{block.place}: {text}"
        for call in re.findall(r"\bottoctl ([^|;<>)]*)", text):
            _check_call(app, call.split(), f"{block.place}: ottoctl {call}")


def _check_call(command: Any, words: list[str], place: str) -> None:
    while words and getattr(command, "commands", None):
        assert words[0] in command.commands, place
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help"}
    for word in words:
        if re.fullmatch(r"--[a-z-]+|-[a-z]", word):
            assert word in known, f"{place}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files that exist, and headings in them."""
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_every_page_can_be_found() -> None:
    """From README and docs/index.md a reader gets to every page by links."""
    found, waiting = set(), [ROOT / "README.md", ROOT / "docs/index.md"]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".md":
            continue
        found.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if ":" not in link]
    assert set(PAGES) - found == set()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_pages_name_no_machine(page: Path) -> None:
    """No absolute path of somebody's machine, and no package index, stands in a page."""
    text = page.read_text()
    assert not (found := MACHINE_PATH.findall(text)), found
    assert not (found := INDEX_HOST.findall(text)), found


def test_generated_pages_are_in_sync() -> None:
    """`make docs` would change nothing."""
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_decision_is_in_the_index() -> None:
    """docs/adr/README.md lists each record with its own title."""
    index = (ROOT / "docs/adr/README.md").read_text()
    records = sorted((ROOT / "docs/adr").glob("0*.md"))
    assert records
    for record in records:
        number, title = record.read_text().splitlines()[0].removeprefix("# ").split(": ", 1)
        assert f"| [{number}]({record.name}) | {title} |" in index


# ---------------------------------------------------------------- what has no effect is said


def test_settings_without_effect_are_listed() -> None:
    """Keys of the daemon's file that no process reads are those that the page on limits lists, and no others."""
    code = source("root", "worker", "zygote", "storage", "transport", "telemetry", "isolation")
    code += (ROOT / "ottod/settings/keys.py").read_text()
    unread = set()
    for section in msgspec.structs.fields(DaemonSettings):
        if section.name not in CONSUMED_BY_SETTINGS:
            for key, _ in leaves(section.type, f"{section.name}."):
                unread |= (
                    set() if re.search(rf"(settings|allowance|caps)\.({key}|{key.split('.')[-1]})\b", code) else {key}
                )
    assert unread == listed("settings")


def test_agent_keys_without_effect_are_listed() -> None:
    """Keys of agent files that no process reads are those that the page on limits lists, and no others."""
    code = source("root", "worker", "core", "isolation") + (ROOT / "ottod/settings/routing.py").read_text()
    unread = set()
    for key, depth in leaves(AgentSpec, ""):
        # Structs below the spec are often taken out of it first: `shutdown = spec.restart.shutdown`.
        read = rf"(spec|agent)\.{key}\b" if depth < 1 else rf"\b{'.'.join(key.split('.')[-2:])}\b"
        unread |= set() if key in LOADER_FIELDS or re.search(read, code) else {key}
    assert unread == listed("agent")


def source(*rooms: str) -> str:
    """The code of these rooms."""
    return "\n".join(file.read_text() for room in rooms for file in sorted((ROOT / "ottod" / room).rglob("*.py")))


def leaves(struct: type[msgspec.Struct], prefix: str, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Paths of the fields that are no structs themselves; lists of structs count as one field."""
    for field in msgspec.structs.fields(struct):
        inner = [
            t for t in (field.type, *get_args(field.type)) if isinstance(t, type) and issubclass(t, msgspec.Struct)
        ]
        if inner == [field.type]:
            yield from leaves(inner[0], f"{prefix}{field.name}.", depth + 1)
        else:
            yield prefix + field.name, depth


def listed(what: str) -> set[str]:
    """The keys in the table that follows the mark on the page."""
    _, found, below = LIMITS.read_text().partition(f"<!-- unread: {what} -->")
    if not found:
        return set()
    table = re.match(r"\s*((?:\|.*\n)*)", below)
    assert table is not None
    return {key for row in table[1].splitlines()[2:] for key in re.findall(r"`([a-z_.]+)`", row.split("|")[1])}
