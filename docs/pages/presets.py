"""The presets reference: what each says, from its rules and from real decisions."""

from __future__ import annotations

from ottod.core.claims import claims_of
from ottod.core.permission import PROTECTED_PATHS, Call, decide
from ottod.core.presets import SESSION_TOOLS, preset_rules
from ottod.protocol.policy import Authority
from ottod.protocol.specs import Preset
from ottod.protocol.toolio import Facts
from pages.common import NOTICE, cell

PRESETS: tuple[Preset, ...] = ("strict", "balanced", "autonomous")
WHAT = (
    ("reading files", "x", "read"),
    ("writing files", "x", "write"),
    ("programs, confined", "x", "exec"),
    ("programs, not confined", "x", "exec"),
    ("the network", "x", "net"),
    ("the tool `http`", "http", "net"),
    (f"{', '.join(f'`{tool}`' for tool in SESSION_TOOLS)}", SESSION_TOOLS[0], "exec"),
    ("tools that touch nothing", "x", "none"),
)


def presets_page() -> str:
    """A table of decisions, then each preset's rules."""
    rows = "".join(
        f"| {what} | {' | '.join(_effect(preset, tool, kind, 'not' not in what) for preset in PRESETS)} |\n"
        for what, tool, kind in WHAT
    )
    parts = "".join(_rules(preset) for preset in PRESETS)
    protected = "".join(f"- `{path}`\n" for path in PROTECTED_PATHS)
    return f"""{NOTICE}
# Presets

What is decided about a call that no rule of yours speaks about. How rules are written and weighed:
[say what agents may do](../how-to/permissions.md).

| | {" | ".join(PRESETS)} |
|---|---|---|---|
{rows}
Programs are confined if Landlock or bubblewrap holds them and the agent does not say `isolation: {{files: off}}`.

{parts}
## Never allowed

Writing what programs outside of the sandbox run or obey, at any depth, whatever the case; and anything of Otto's own
directories:

{protected}"""


def _effect(preset: Preset, tool: str, kind: str, is_confined: bool) -> str:
    claims = claims_of(set() if kind == "none" else {kind}, Facts(), root="/w")
    authority = Authority(name="rules", preset=preset)
    return decide(Call(tool=tool, claims=claims, is_confined=is_confined), (authority,)).effect


def _rules(preset: Preset) -> str:
    text = f"## `{preset}`\n\n| rule | why |\n|---|---|\n"
    for rule in preset_rules(preset, is_confined=True):
        text += f"| `{rule!s}` | {cell(rule.reason)} |\n"
    return text + "\n"
