"""Sequences of events for supervision trees, drawn from a seed: what the recorder runs against OTP.

A sequence is a tree of supervisors and a list of steps. In JSON a tree is
`[strategy, intensity, period_s, auto_shutdown, children]`, a child `[id, restart, significant]` or, if it is a
supervisor itself, `[id, restart, significant, tree]`; a path joins ids with dots. Steps:

| step | what the recorder does |
|---|---|
| `["exit", path, reason]` | ends a worker: `normal`, `shutdown`, `x` (`{shutdown, x}`), `crash`, `kill` |
| `["exits", path, [[child, reason], …]]` | workers of one supervisor end in this order before it notices the first |
| `["wait", seconds]` | lets real time pass |
| `["fail", path, times]` | the worker's next `times` starts fail |
| `["remove", path]` | `supervisor:terminate_child`, then `delete_child` |
| `["delete", path]` | `supervisor:delete_child` |
| `["restart", path]` | `supervisor:restart_child` |
| `["add", path, child]` | `supervisor:start_child` |

OTP counts in whole seconds, so times are chosen to be far from every border: a period of 4 s with waits of 3 s (still
in) and 6 s (surely out), or a period nobody reaches.
"""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
RESTARTS = ("permanent", "transient", "temporary")
AUTO_SHUTDOWNS = ("never", "any_significant", "all_significant")
REASONS = ("normal", "shutdown", "x", "crash", "kill")
IDS = "abcdef"
WAITABLE_PERIOD_S = 4
LONG_PERIOD_S = 600
MAX_WAITS = 3

Tree = list[Any]
Step = list[Any]


def sequence(random: Random, number: int) -> tuple[Tree, list[Step]]:
    """One tree and its steps. `number` walks through strategies, so that none is left to chance."""
    levels = random.choice((1, 1, 1, 2, 2, 3))
    waits = random.random() < 0.35
    tree = _tree(random, levels, waits=waits, strategy=STRATEGIES[number % 3], is_top=True)
    manual = random.random() < 0.4
    grown = deepcopy(tree)
    steps: list[Step] = []
    added = 0
    for _ in range(random.randint(4, 9 if waits else 14)):
        paths = _workers(grown)
        draw = random.random()
        if waits and draw < 0.25 and sum(step[0] == "wait" for step in steps) < MAX_WAITS:
            steps.append(["wait", random.choice((3, 3, 6))])
        elif manual and draw < 0.5:
            step = _after_a_good_end(random, grown, steps) or _by_hand(random, grown, added)
            added += step[0] == "add"
            steps.append(step)
        elif not manual and draw < 0.4 and paths:
            steps.append(["fail", random.choice(paths), random.choice((1, 1, 2, 3))])
        elif draw > 0.85 and (crowds := _crowds(grown)):
            path, workers = random.choice(crowds)
            ending = random.sample(workers, min(len(workers), random.choice((2, 2, 3))))
            steps.append(["exits", path, [[child, random.choices(REASONS, (3, 2, 1, 6, 2))[0]] for child in ending]])
        elif paths:
            steps.append(["exit", random.choice(paths), random.choices(REASONS, (3, 2, 1, 6, 2))[0]])
    return tree, steps


def _tree(random: Random, levels: int, *, waits: bool, strategy: str, is_top: bool = False) -> Tree:
    auto_shutdown = random.choices(AUTO_SHUTDOWNS, (3, 2, 2))[0]
    children = []
    widths = (1, 2, 2, 3, 3, 4, 5, 6) if is_top else (1, 2, 2, 3)
    for name in IDS[: random.choice(widths)]:
        restart = random.choice(RESTARTS)
        may = auto_shutdown != "never" and restart != "permanent"
        child = [name, restart, int(may and random.random() < 0.6)]
        if levels > 1 and random.random() < 0.5:
            child.append(_tree(random, levels - 1, waits=waits, strategy=random.choice(STRATEGIES)))
        children.append(child)
    period_s = WAITABLE_PERIOD_S if waits else LONG_PERIOD_S
    return [
        strategy or random.choice(STRATEGIES),
        random.choice((0, 1, 1, 2, 3, 5)),
        period_s,
        auto_shutdown,
        children,
    ]


def _by_hand(random: Random, tree: Tree, added: int) -> Step:
    """Something that an operator does. What is added grows on `tree`, so that later steps can meet it."""
    kind = random.choice(("remove", "delete", "restart", "add"))
    if kind == "add":
        above, branch = random.choice(list(_supervisors(tree)))
        name = "ghijklmnopqrst"[added]
        restart = random.choice(RESTARTS)
        significant = int(branch[3] != "never" and restart != "permanent" and random.random() < 0.5)
        branch[4].append([name, restart, significant])
        return ["add", f"{above}.{name}".lstrip("."), [name, restart, significant]]
    return [kind, random.choice([path for path, _ in _children(tree)])]


def _after_a_good_end(random: Random, tree: Tree, steps: list[Step]) -> Step | None:
    """A transient child that has just ended well is down: what can be done by hand then."""
    ends = [step[1] for step in steps[-1:] if step[0] == "exit" and step[2] in ("normal", "shutdown", "x")]
    down = [path for path, child in _children(tree) if path in ends and child[1] == "transient"]
    return [random.choice(("restart", "delete")), down[0]] if down else None


def _children(tree: Tree, above: str = "") -> list[tuple[str, list[Any]]]:
    found = []
    for child in tree[4]:
        path = f"{above}.{child[0]}".lstrip(".")
        found.append((path, child))
        if len(child) > 3:
            found += _children(child[3], path)
    return found


def _workers(tree: Tree) -> list[str]:
    return [path for path, child in _children(tree) if len(child) == 3]


def _crowds(tree: Tree) -> list[tuple[str, list[str]]]:
    """Supervisors with more than one worker, and those workers."""
    found = [(path, [c[0] for c in branch[4] if len(c) == 3]) for path, branch in _supervisors(tree)]
    return [(path, workers) for path, workers in found if len(workers) > 1]


def _supervisors(tree: Tree) -> list[tuple[str, Tree]]:
    return [("", tree), *((path, child[3]) for path, child in _children(tree) if len(child) > 3)]


def as_erlang(number: int, tree: Tree, steps: list[Step]) -> str:
    """The sequence as the Erlang term that the recorder reads."""
    return f"{{{number}, {_erlang_tree(tree)}, [{', '.join(_erlang_step(step) for step in steps)}]}}.\n"


def _erlang_tree(tree: Tree) -> str:
    strategy, intensity, period_s, auto_shutdown, children = tree
    inner = ", ".join(_erlang_child(child) for child in children)
    return f"{{{strategy}, {intensity}, {period_s}, {auto_shutdown}, [{inner}]}}"


def _erlang_child(child: list[Any]) -> str:
    what = _erlang_tree(child[3]) if len(child) > 3 else "worker"
    return f"{{{child[0]}, {child[1]}, {'true' if child[2] else 'false'}, {what}}}"


def _erlang_step(step: Step) -> str:
    match step:
        case ["wait", seconds]:
            return f"{{wait, {seconds}}}"
        case ["exits", path, endings]:
            inner = ", ".join(f"{{{child}, {reason}}}" for child, reason in endings)
            return f"{{exits, {_erlang_path(path)}, [{inner}]}}"
        case ["add", path, child]:
            return f"{{add, {_erlang_path(path)}, {_erlang_child(child)}}}"
        case [kind, path, *rest]:
            return f"{{{', '.join([kind, _erlang_path(path), *map(str, rest)])}}}"
        case _:
            raise ValueError(f"not a step: {step}")


def _erlang_path(path: str) -> str:
    return f"[{path.replace('.', ', ')}]"
