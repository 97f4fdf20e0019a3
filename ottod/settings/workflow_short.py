"""Short forms in workflow files, written out on the parsed nodes, so that every part still knows where it stood.

tags: one, two                     [one, two]; also needs, inputs and outputs, and the lists of a route
inputs: [spec]                     of the workflow: [{name: spec}]
outputs: [ticket]                  [{name: ticket}]
inputs: [{name: a, kind: ticket}]  of a step: [a], and expects: {a: ticket}
acceptance: One thing              [One thing]
agent: tester                      also id: tester, unless there is one
route: who knows SQL               {hint: who knows SQL}
approval: Look first               {reason: Look first}; approval: true is {}
retry: 3                           {attempts: 3}
until: [A, B], when: [A, B]        {all: [A, B]}
permissions: strict                {preset: strict}
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ottod.settings.yaml_source import Entries, Items, Mark, Node, Scalar

_WORD = re.compile(r"[^,\s]+")

Form = Callable[[Node], Node]


def long_form(root: Entries, name: str) -> Entries:
    """A workflow file's nodes without short forms; `name` unless it says its own."""
    full = _with(root, "name", Scalar(name, root.mark), root.mark)
    return _edited_entries(
        full,
        {"tags": words, "permissions": _in("preset", str), "inputs": _named, "until": _all_of, "steps": _steps},
    )


def plain(node: Node) -> Any:
    """The data of a node."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Items):
        return [plain(inner) for inner in node.nodes]
    return {key: plain(inner) for key, inner in node.nodes.items()}


def words(node: Node) -> Node:
    """`one, two` as a list."""
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        return node
    return Items([Scalar(word, node.mark) for word in _WORD.findall(node.value)], node.mark)


def _steps(node: Node) -> Node:
    return node._replace(nodes=[_step(inner) for inner in node.nodes]) if isinstance(node, Items) else node


def _step(node: Node) -> Node:
    if not isinstance(node, Entries):
        return node
    agent = node.nodes.get("agent")
    if agent is not None and isinstance(agent, Scalar) and isinstance(agent.value, str):
        node = _with(node, "id", agent, node.key_marks["agent"])
    return _edited_entries(
        _expecting(node),
        {
            "needs": words,
            "acceptance": _listed,
            "outputs": _named,
            "route": lambda inner: _edited(_in("hint", str)(inner), {"tags": words, "tools": words}),
            "retry": _in("attempts", int),
            "approval": _approval,
            "when": _all_of,
            "until": _all_of,
            "steps": _steps,
        },
    )


def _expecting(step: Entries) -> Entries:
    """A step whose inputs are names, and what was said of their kinds in `expects`."""
    inputs = words(step.nodes["inputs"]) if "inputs" in step.nodes else None
    if not isinstance(inputs, Items):
        return step
    names: list[Node] = []
    kinds: dict[str, Node] = {}
    for given in inputs.nodes:
        name = (
            given.nodes.get("name") if isinstance(given, Entries) and given.nodes.keys() <= {"name", "kind"} else None
        )
        if isinstance(given, Entries) and isinstance(name, Scalar) and isinstance(name.value, str):
            names.append(name)
            if "kind" in given.nodes:
                kinds[name.value] = given.nodes["kind"]
        else:
            names.append(given)
    full = step._replace(nodes={**step.nodes, "inputs": inputs._replace(nodes=names)})
    if not kinds:
        return full
    marks = {name: node.mark for name, node in kinds.items()}
    return _with(full, "expects", Entries(kinds, marks, inputs.mark), inputs.mark)


def _named(node: Node) -> Node:
    """A list whose plain names are mappings with a name."""
    items = words(node)
    return (
        items._replace(nodes=[_in("name", str)(item) for item in items.nodes]) if isinstance(items, Items) else items
    )


def _listed(node: Node) -> Node:
    return Items([node], node.mark) if isinstance(node, Scalar) and isinstance(node.value, str) else node


def _approval(node: Node) -> Node:
    return Entries({}, {}, node.mark) if isinstance(node, Scalar) and node.value is True else _in("reason", str)(node)


def _all_of(node: Node) -> Node:
    return Entries({"all": node}, {"all": node.mark}, node.mark) if isinstance(node, Items) else node


def _in(key: str, kind: type) -> Form:
    """A scalar of a kind, put under a key."""

    def wrapped(node: Node) -> Node:
        fits = isinstance(node, Scalar) and isinstance(node.value, kind) and not isinstance(node.value, bool)
        return Entries({key: node}, {key: node.mark}, node.mark) if fits else node

    return wrapped


def _with(node: Entries, key: str, value: Node, mark: Mark) -> Entries:
    """The mapping with a key, unless it has it."""
    if key in node.nodes:
        return node
    return node._replace(nodes={**node.nodes, key: value}, key_marks={**node.key_marks, key: mark})


def _edited(node: Node, forms: dict[str, Form]) -> Node:
    return _edited_entries(node, forms) if isinstance(node, Entries) else node


def _edited_entries(node: Entries, forms: dict[str, Form]) -> Entries:
    return node._replace(
        nodes={key: forms[key](inner) if key in forms else inner for key, inner in node.nodes.items()}
    )
