"""The house has floors: imports point down only (DESIGN §10)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ottod"
CLIENT = PACKAGE.parent / "ottoctl"
FLOOR = {
    "errors": 0, "ids": 0, "protocol": 0, "settings": 0, "core": 1,
    "storage": 2, "isolation": 2, "transport": 2, "telemetry": 2, "providers": 2, "tools": 2, "sinks": 2,
    "root": 3, "zygote": 3, "worker": 3, "gateway": 3, "__main__": 4, "__init__": 0,
}  # fmt: skip
IMPURE = {
    "time",
    "os",
    "random",
    "asyncio",
    "threading",
    "logging",
    "zmq",
    "sqlite3",
    "socket",
    "subprocess",
    "secrets",
}
HEAVY = {"opentelemetry", "anthropic", "openai", "httpx2", "pydantic", "starlette", "uvicorn"}
FILES = sorted(PACKAGE.rglob("*.py"))
CLIENT_FILES = sorted(CLIENT.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Absolute names of all modules that a file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    """A room imports lower floors and itself; rooms of floors 2 and 3 do not import their neighbours."""
    here = room(file)
    for name in imports(file):
        if not name.startswith("ottod."):
            assert not name.startswith("ottoctl"), f"{file} imports the client"
            continue
        there = name.split(".")[1]
        if there == here or there == "__version__":
            continue
        assert there in FLOOR, f"{name} is in no known room"
        is_lower = FLOOR[there] < FLOOR[here]
        both_vocabulary = FLOOR[there] == FLOOR[here] == 0 and not (
            here in ("errors", "ids", "protocol") and there == "settings"
        )
        assert is_lower or both_vocabulary, f"{file} ({here}) imports {name}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "core").glob("*.py")), ids=lambda f: f.name)
def test_core_is_pure(file: Path) -> None:
    """The core knows no clock, no chance, no thread, no socket and no disk."""
    tops = {name.split(".")[0] for name in imports(file)}
    assert not tops & IMPURE


@pytest.mark.parametrize("file", CLIENT_FILES, ids=lambda f: str(f.relative_to(CLIENT)))
def test_client_knows_the_vocabulary_only(file: Path) -> None:
    """ottoctl imports layer 0 of ottod and no SDK."""
    for name in imports(file):
        assert name.split(".")[0] not in HEAVY
        if name.startswith("ottod."):
            assert FLOOR[name.split(".")[1]] == 0 or name == "ottod.__version__", f"{file} imports {name}"


def test_root_imports_no_sdk() -> None:
    """Nothing that root imports, directly or not, is an SDK, a tool or a web framework."""
    seen: set[str] = set()
    queue = ["ottod.root.daemon", "ottod.__main__"]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        base = PACKAGE.parent / Path(*name.split("."))
        file = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
        if file.exists():
            queue += [n for n in imports(file) if n.startswith("ottod")]
    tops = {name.split(".")[0] for name in seen}
    assert not tops & HEAVY
    assert not {n for n in seen if n.startswith(("ottod.providers", "ottod.tools", "ottod.worker", "ottod.gateway"))}
