"""What would become of a tool call: a short-lived program for root, which imports no tool.

It reads one `Hypothesis` from its standard input, as JSON, and writes one `PolicyExplanation`. Nothing is called.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

import msgspec

from ottod.core.other_layers import other_layers
from ottod.core.permission import Finding, Loser, Verdict, covering_grant, grant_keys
from ottod.errors import ToolError
from ottod.protocol.model import ToolCall
from ottod.protocol.policy import Hypothesis
from ottod.protocol.results import ClaimRuling, LayerWord, PolicyExplanation, RuleWord
from ottod.tools.arguments import decode_arguments, fields
from ottod.tools.base import Tool
from ottod.tools.registry import BUILTIN_TOOLS
from ottod.worker.judge import Judge

MAX_RULINGS = 200
PROGRAM_TOOLS = ("shell", "test_runner")
Outcome = Literal["runs", "waits", "fails"]


def explain(order: Hypothesis) -> PolicyExplanation:
    """What the rules say of the call, one by one, and what else would stop it."""
    tools = {tool.name: tool for tool in BUILTIN_TOOLS}
    judge = Judge(
        authorities=order.authorities,
        tools=tools,
        cwd=order.cwd,
        run_mode=order.run_mode,
        is_confined=order.is_confined,
    )
    wrong = _what_is_wrong(tools.get(order.tool), order.arguments)
    call = ToolCall(call="c-1", tool=order.tool, arguments=order.arguments)
    claims = judge.claims(call)
    verdict = judge.decide(call.tool, claims)
    keys, is_exact = grant_keys(verdict, arguments=order.arguments)
    grant = covering_grant(order.grants, tool=order.tool, keys=keys, is_exact=is_exact, now_ns=time.time_ns())
    layers = other_layers(
        claims, isolation=order.spec.isolation, given=order.isolation, is_program=order.tool in PROGRAM_TOOLS
    )
    outcome, message = _outcome(order, verdict, has_grant=grant is not None, wrong=wrong)
    outcome, message = _after_layers(order, outcome, message, layers)
    first = verdict.decisive
    answer = PolicyExplanation(
        agent=order.spec.name,
        agent_source=order.spec.source,
        tool=order.tool,
        effect=verdict.effect,
        outcome=outcome,
        message=message,
        cwd=order.cwd,
        run_mode=order.run_mode,
        is_confined=order.is_confined,
        notes=_notes(order, tools.get(order.tool), is_wrong=bool(wrong)),
    )
    if wrong:
        return answer  # Arguments that cannot be read claim nothing that a rule could speak of.
    return msgspec.structs.replace(
        answer,
        claim=str(first.claim),
        authority=first.authority,
        rule=_word(first),
        others=tuple(_loser(each) for each in first.others),
        rulings=tuple(_ruling(finding) for finding in verdict.findings[:MAX_RULINGS]),
        layers=layers,
        grant=grant.grant if grant is not None else "",
    )


def _outcome(order: Hypothesis, verdict: Verdict, *, has_grant: bool, wrong: str) -> tuple[Outcome, str]:
    if order.tool not in order.spec.tools:
        return "fails", f"{order.spec.name} has no tool {order.tool}"
    if wrong:
        return "fails", wrong
    if verdict.effect == "deny":
        return "fails", "a rule forbids it"
    if verdict.effect == "allow":
        return "runs", ""
    if has_grant:
        return "runs", "permission for it stands"
    if order.run_mode == "headless":
        return "fails", "it needs approval, and in a headless session nobody can give it"
    return "waits", "somebody has to approve or deny it"


def _after_layers(
    order: Hypothesis, outcome: Outcome, message: str, layers: tuple[LayerWord, ...]
) -> tuple[Outcome, str]:
    """What the layers make of it: they stop a file tool's whole call, and of a program only the deed."""
    met = next((word for word in layers if not word.is_bound), None)
    if met is None or outcome == "fails":
        return outcome, message
    stopped = f"{met.layer} stops {met.claim}"
    if outcome == "waits":
        return outcome, f"{message}; {stopped} even so"
    if order.tool in PROGRAM_TOOLS:
        return outcome, f"and {stopped}"
    return "fails", f"no rule forbids it, but {stopped}"


def _what_is_wrong(tool: Tool[Any] | None, arguments: str) -> str:
    """Why a call with these arguments fails by itself; empty if it does not, or if nobody here can say."""
    if tool is None:
        return ""
    try:
        decode_arguments(tool, arguments)
    except ToolError as error:
        return _misnamed(tool, arguments) or error.message
    return ""


def _misnamed(tool: Tool[Any], arguments: str) -> str:
    """Which arguments the tool has not, and which it misses; empty if the names are right and a value is not."""
    try:
        given = msgspec.json.decode(arguments.strip() or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return ""
    known = msgspec.structs.fields(tool.arguments) if tool.parameters is None else ()
    foreign = [name for name in given if name not in {field.encode_name for field in known}]
    missing = [field.encode_name for field in known if field.required and field.encode_name not in given]
    said = [f"has no argument {_quoted(foreign)}"] if foreign and known else []
    if missing:
        said.append(f"it needs {_quoted(missing)}" if said else f"needs {_quoted(missing)}")
    return f"{tool.name} {'; '.join(said)}" if said else ""


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _notes(order: Hypothesis, tool: Tool[Any] | None, *, is_wrong: bool) -> tuple[str, ...]:
    notes = []
    if tool is None:
        notes.append(
            f"{order.tool} is no built-in tool: it is judged by its name, and its arguments are not looked at"
        )
    elif is_wrong:
        notes.append(
            f"no rule was weighed: a call fails by itself whose arguments are wrong; {tool.name} has: {fields(tool)}"
        )
        return tuple(notes)
    if not order.is_confined:
        notes.append("programs of this agent are not confined to the working directory")
    return tuple(notes)


def _word(finding: Finding) -> RuleWord:
    rule = finding.rule
    return RuleWord(rule=str(rule), source=rule.source or finding.authority, reason=rule.reason)


def _loser(loser: Loser) -> RuleWord:
    rule = loser.rule
    return RuleWord(rule=str(rule), source=rule.source, reason=rule.reason, why=loser.why)


def _ruling(finding: Finding) -> ClaimRuling:
    return ClaimRuling(
        claim=str(finding.claim),
        effect=finding.effect,
        authority=finding.authority,
        rule=_word(finding),
        others=tuple(_loser(each) for each in finding.others),
    )


def main() -> None:
    """Standard input to standard output."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Hypothesis)
    sys.stdout.buffer.write(msgspec.json.encode(explain(order)))


if __name__ == "__main__":
    main()
