"""What makes a workflow senseless that has the right form: found before anything starts. Pure.

Findings know where they are by a path; the loader makes lines of them. What flows between nodes is `workflow_tree`.
Whether agents and models exist is the loader's to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from ottod.protocol.workflows import MAX_STEPS, Output, Step, WorkflowInput, WorkflowSpec
from ottod.settings.json_schema import KEYWORDS, mistakes
from ottod.settings.nearest import nearest, suggestion
from ottod.settings.placeholders import PLACEHOLDERS, placeholders_in
from ottod.settings.units import format_duration, plural
from ottod.settings.workflow_conditions import condition_findings
from ottod.settings.workflow_finding import Finding
from ottod.settings.workflow_tree import (
    Node,
    Place,
    Reach,
    befores,
    conditions,
    cycles,
    graph_needs,
    is_block,
    left_by,
    places,
    reaches,
    taken_by,
)
from ottod.settings.yaml_source import DataPath

MAX_BLOCK_DEPTH = 16
STEP_FIELDS = ("agent", "route", "task", "inputs", "expects", "outputs", "acceptance", "retry", "compensate", "model")
BLOCK_FIELDS = ("steps", "concurrency", "on_failure", "quorum", "max_iterations", "until", "on_exhausted")
MODES_OF_FIELDS: dict[str, tuple[str, ...]] = {
    "concurrency": ("parallel", "graph"),
    "max_iterations": ("loop",),
    "until": ("loop",),
    "on_exhausted": ("loop",),
}
_DEFAULTS = msgspec.structs.asdict(Step(id="default"))


def findings(spec: WorkflowSpec) -> list[Finding]:
    """Everything that is wrong with a workflow whose fields have the right types."""
    too_large = _size(spec)
    if too_large:
        return too_large
    found: list[Finding] = []
    for place in places(spec):
        found += _shape(place)
        found += _budgets(place)
        found += _texts(place)
        found += _diffs(place)
    found += _ids(spec)
    found += _artifacts(spec)
    found += _graphs(spec)
    found += _flow(spec)
    return found


def label(node: Node) -> str:
    """A node, for people."""
    if isinstance(node, WorkflowSpec):
        return "the workflow"
    return f"{node.mode} {node.id!r}" if node.mode else f"step {node.id!r}"


def _size(spec: WorkflowSpec) -> list[Finding]:
    """Beyond these bounds nothing else is looked at."""
    for count, place in enumerate(places(spec)):
        if count > MAX_STEPS:
            return [Finding(("steps",), f"more than {MAX_STEPS} steps and blocks", "make several workflows of it")]
        if len(place.around) > MAX_BLOCK_DEPTH:
            return [Finding(place.path, f"blocks nested more than {MAX_BLOCK_DEPTH} deep", "make it flatter")]
    return []


# ------------------------------------------------------------------ one node


def _shape(place: Place) -> Iterator[Finding]:
    """Fields that a node has and must not have, and the reverse."""
    node, path = place.node, place.path
    if isinstance(node, Step):
        wrong = STEP_FIELDS if is_block(node) else BLOCK_FIELDS
        for name in wrong:
            if getattr(node, name) != _DEFAULTS[name]:
                yield Finding((*path, name), *_misplaced(node, name), key=True)
        if not is_block(node) and not node.steps:
            yield from _who(node, path)
        around = place.around[-1]
        if node.needs and around.mode != "graph":
            mend = "put the nodes into a block with `mode: graph`, or remove it: here they run as they stand"
            yield Finding((*path, "needs"), f"{label(node)} has needs, and is not in a graph", mend, key=True)
        yield from _expectations(node, path)
    if is_block(node):
        yield from _block(node, path)


def _misplaced(node: Step, name: str) -> tuple[str, str]:
    if is_block(node):
        return f"{label(node)} is a block, and {name} is for steps", f"move {name} to the steps within it"
    if name == "steps":
        return f"step {node.id!r} has steps and no mode", "add `mode:` with sequential, parallel, loop or graph"
    return f"{label(node)} is no block, and {name} is for blocks", f"remove {name}, or give it a mode and steps"


def _who(node: Step, path: DataPath) -> Iterator[Finding]:
    if not node.agent and node.route is None:
        yield Finding(
            path, f"step {node.id!r} names nobody who does it", "add `agent:` or `route:`; a block has `mode:`"
        )
    if node.agent and node.route is not None:
        yield Finding((*path, "route"), f"step {node.id!r} has an agent and a route", "keep one of the two", key=True)
    if node.retry.fallback_agent and node.retry.attempts < 2:
        mend = "write `attempts: 2` or more: the last attempt is the fallback agent's"
        yield Finding((*path, "retry", "fallback_agent"), f"step {node.id!r} never gets to its fallback agent", mend)
    if node.retry.backoff.base_s > node.retry.backoff.max_s:
        message = f"the backoff of step {node.id!r} begins above its max_s"
        mend = f"write `max_s: {node.retry.backoff.base_s:g}` or more, or a smaller base_s"
        yield Finding((*path, "retry", "backoff", "base_s"), message, mend)


def _expectations(node: Step, path: DataPath) -> Iterator[Finding]:
    for name in node.expects:
        if name not in node.inputs:
            mend = suggestion(name, node.inputs) or "add it to inputs"
            yield Finding((*path, "expects", name), f"step {node.id!r} expects {name!r}, and does not take it", mend)


def _block(node: Node, path: DataPath) -> Iterator[Finding]:
    if not node.steps:
        yield Finding(path, f"{label(node)} has no steps", "add `steps:` with at least one")
    for name, modes in MODES_OF_FIELDS.items():
        if isinstance(node, WorkflowSpec) and name == "concurrency":
            continue  # There it bounds all blocks together.
        if node.mode not in modes and getattr(node, name) != _DEFAULTS[name]:
            message = f"{name} has no meaning in {label(node)}, whose mode is {node.mode}"
            yield Finding((*path, name), message, f"remove it, or write `mode: {modes[0]}`", key=True)
    if node.mode == "loop":
        if node.max_iterations is None:
            yield Finding(path, f"{label(node)} is a loop without a bound", "add `max_iterations:`")
        if node.until is None:
            mend = "add `until:`, as in `until: {artifact: review, field: verdict, equals: approved}`"
            yield Finding(path, f"{label(node)} is a loop without an end", mend)
    yield from _quorum(node, path)


def _quorum(node: Node, path: DataPath) -> Iterator[Finding]:
    if node.quorum is not None and node.on_failure != "quorum":
        message = f"{label(node)} has a quorum, and on_failure is {node.on_failure}"
        yield Finding((*path, "quorum"), message, "write `on_failure: quorum`, or remove it", key=True)
    elif node.quorum is not None and node.quorum > len(node.steps):
        message = f"a quorum of {node.quorum} cannot be reached with {plural(len(node.steps), 'step')}"
        yield Finding((*path, "quorum"), message, f"write {len(node.steps)} or less")


def _budgets(place: Place) -> Iterator[Finding]:
    """A part of a budget is not larger than the whole, which is that of the nearest block that says one."""
    forms: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("seconds", format_duration),
        ("tokens", "{:,}".format),
        ("usd", "${:.2f}".format),
    )
    for name, form in forms:
        own = getattr(place.node.budgets, name)
        whole = next((n for n in reversed(place.around) if getattr(n.budgets, name) is not None), None)
        if own is None or whole is None:
            continue
        limit = getattr(whole.budgets, name)
        if own > limit:
            message = f"budgets.{name} of {label(place.node)} is {form(own)}, and {label(whole)} has {form(limit)}"
            yield Finding((*place.path, "budgets", name), message, f"write {form(limit)} or less, or raise the other")


def _texts(place: Place) -> Iterator[Finding]:
    """Placeholders that nobody fills in would reach the agent as they stand."""
    node = place.node
    if not isinstance(node, Step):
        return
    in_loop = any(n.mode == "loop" for n in place.around)
    texts: list[tuple[DataPath, str]] = [(("task",), node.task)]
    if node.compensate is not None:
        texts.append((("compensate", "task"), node.compensate.task))
    for below, text in texts:
        for word in placeholders_in(text):
            here = (*place.path, *below)
            if word not in PLACEHOLDERS:
                close = nearest(word, PLACEHOLDERS)
                mend = f"did you mean {{{{{close}}}}}?" if close else "there are {{task}} and {{iteration}}"
                yield Finding(here, f"unknown placeholder {{{{{word}}}}} in step {node.id!r}", mend)
            elif word == "iteration" and not in_loop:
                yield Finding(here, f"{{{{iteration}}}} in step {node.id!r}, which is in no loop", "remove it")


def _diffs(place: Place) -> Iterator[Finding]:
    """Only a diff within a loop can be of more than its own step."""
    node = place.node
    if not isinstance(node, Step):
        return
    in_loop = any(n.mode == "loop" for n in place.around)
    for i, output in enumerate(node.outputs):
        here = (*place.path, "outputs", i, "since")
        if output.since == "loop" and output.capture != "diff":
            mend = "add `capture: diff`, or remove it"
            yield Finding(here, f"`since` is for diffs, and {output.name!r} is none", mend)
        elif output.since == "loop" and not in_loop:
            yield Finding(here, f"`since: loop` in step {node.id!r}, which is in no loop", "remove it")


# ------------------------------------------------------------------ ids and artifacts


def _ids(spec: WorkflowSpec) -> Iterator[Finding]:
    first: dict[str, DataPath] = {}
    for place in places(spec):
        if isinstance(place.node, Step) and place.node.id in first:
            message = f"the id {place.node.id!r} is taken twice in this workflow"
            yield Finding((*place.path, "id"), message, "add an `id:` of its own to one of the two")
        elif isinstance(place.node, Step):
            first[place.node.id] = place.path


def _artifacts(spec: WorkflowSpec) -> Iterator[Finding]:
    """A name is of one kind and one schema in a whole workflow; schemas can be carried out."""
    first: dict[str, tuple[WorkflowInput | Output, str]] = {}
    for path, artifact, whose in _all_artifacts(spec):
        for mistake in mistakes(artifact.schema):
            message = f"the schema of {artifact.name!r}: {mistake.message}"
            mend = f"keywords that are checked: {', '.join(KEYWORDS)}"
            yield Finding((*path, "schema", *mistake.path), message, mend)
        if artifact.name not in first:
            first[artifact.name] = artifact, whose
            continue
        other, where = first[artifact.name]
        if artifact.kind != other.kind:
            message = f"{artifact.name!r} is a {artifact.kind} here, and a {other.kind} in {where}"
            yield Finding((*path, "kind"), message, f"write `kind: {other.kind}`, or give it another name")
        elif artifact.schema != other.schema:
            mend = "repeat the schema as it is there, or give it another name"
            yield Finding((*path, "schema"), f"{artifact.name!r} has another schema in {where}", mend)


def _all_artifacts(spec: WorkflowSpec) -> Iterator[tuple[DataPath, WorkflowInput | Output, str]]:
    """Every artifact that is declared, with its path and who declares it; and names that one node has twice."""
    for i, given in enumerate(spec.inputs):
        yield ("inputs", i), given, "the workflow's inputs"
    for place in places(spec):
        for i, output in enumerate(place.node.outputs if isinstance(place.node, Step) else ()):
            yield (*place.path, "outputs", i), output, label(place.node)


def _kinds(spec: WorkflowSpec) -> dict[str, WorkflowInput | Output]:
    """Name → the first declaration of an artifact."""
    found: dict[str, WorkflowInput | Output] = {}
    for _, artifact, _ in _all_artifacts(spec):
        found.setdefault(artifact.name, artifact)
    return found


# ------------------------------------------------------------------ order


def _graphs(spec: WorkflowSpec) -> Iterator[Finding]:
    for place in places(spec):
        node = place.node
        if node.mode == "parallel":
            yield from _left_twice(node, place.path, ordered=lambda one, other: False)
        if node.mode != "graph":
            continue
        ids = [step.id for step in node.steps]
        for i, step in enumerate(node.steps):
            for k, need in enumerate(step.needs):
                here = (*place.path, "steps", i, "needs", k)
                if need == step.id:
                    yield Finding(here, f"step {need!r} needs itself", "remove it")
                elif need not in ids:
                    others = [other for other in ids if other != step.id]
                    message = f"step {step.id!r} needs {need!r}, which is not in this graph"
                    yield Finding(here, message, suggestion(need, others) or "remove it")
        needs = graph_needs(node.steps)
        for circle in cycles(needs):
            yield _cycle(node.steps, circle, place.path)
        after = befores(needs)
        yield from _left_twice(
            node, place.path, ordered=lambda one, other, a=after: one in a[other] or other in a[one]
        )


def _cycle(steps: Sequence[Step], circle: list[str], path: DataPath) -> Finding:
    """Said at the first of its nodes in the file, with what each waits for."""
    order = [step.id for step in steps]
    start = min(range(len(circle)), key=lambda k: order.index(circle[k]))
    way = [*circle[start:], *circle[:start]]
    named = {step.id: step for step in steps}
    parts = [way[0]]
    for one, other in zip(way, [*way[1:], way[0]], strict=True):
        shared = sorted(taken_by(named[one]) & left_by(named[other]))
        parts.append(other if other in named[one].needs or not shared else f"{other} (for {shared[0]!r})")
    here: DataPath = (*path, "steps", order.index(way[0]))
    field = "needs" if way[1 % len(way)] in named[way[0]].needs else "inputs"
    return Finding(
        (*here, field), f"a cycle: {' needs '.join(parts)}", "remove one of these needs or inputs", key=True
    )


def _left_twice(node: Node, path: DataPath, *, ordered: Callable[..., bool]) -> Iterator[Finding]:
    """What two nodes leave that may run at once: which version is the newest would be chance."""
    by: dict[str, list[str]] = {}
    for i, step in enumerate(node.steps):
        for name in sorted(left_by(step)):
            rival = next((other for other in by.get(name, ()) if not ordered(other, step.id)), "")
            if rival:
                message = f"{name!r} is left by {rival!r} and by {step.id!r}, which run at the same time"
                yield Finding(
                    (*path, "steps", i), message, "give each an output of its own, or run one after the other"
                )
            by.setdefault(name, []).append(step.id)


def _flow(spec: WorkflowSpec) -> Iterator[Finding]:
    """Inputs and conditions against what can be there."""
    known = _kinds(spec)
    reach = reaches(spec)
    for place in places(spec):
        node, here = place.node, reach[place.path]
        if isinstance(node, Step):
            for i, name in enumerate(node.inputs):
                yield from _input(node, name, (*place.path, "inputs", i), here, known)
            yield from _twice(node.inputs, (*place.path, "inputs"), label(node))
            yield from _twice([output.name for output in node.outputs], (*place.path, "outputs"), label(node))
            if node.when is not None:
                for condition, path in conditions(node.when, (*place.path, "when")):
                    yield from condition_findings(condition, path, here, known, label(node))
        else:
            yield from _twice([given.name for given in node.inputs], ("inputs",), label(node))
        if node.until is not None:
            for condition, path in conditions(node.until, (*place.path, "until")):
                yield from condition_findings(condition, path, here.plus(*node.steps), known, label(node))


def _twice(names: Sequence[str], path: DataPath, whose: str) -> Iterator[Finding]:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield Finding((*path, i), f"{whose} lists {name!r} twice", "remove one of the two")


def _input(
    node: Step, name: str, path: DataPath, here: Reach, known: dict[str, WorkflowInput | Output]
) -> Iterator[Finding]:
    if name not in here.artifacts:
        if name in known:
            message = f"step {node.id!r} takes {name!r}, which is not left before it"
            mend = "put who leaves it before this step; branches that run at the same time see nothing of each other"
        else:
            message = f"unknown input {name!r} of step {node.id!r}"
            close = nearest(name, here.artifacts)
            there = (
                f"there are: {', '.join(sorted(here.artifacts))}" if here.artifacts else "nothing is left before it"
            )
            mend = f"did you mean {close!r}?" if close else f"{there}; or add it to the workflow's inputs"
        yield Finding(path, message, mend)
    elif name in node.expects and known[name].kind != node.expects[name]:
        message = f"step {node.id!r} expects {name!r} to be a {node.expects[name]}, and it is a {known[name].kind}"
        yield Finding((*path[:-2], "expects", name), message, f"write {known[name].kind!r}, or change who leaves it")
