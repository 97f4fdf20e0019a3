"""Puts root's modules on the stage: what they call time, chance and the kernel is the simulated machine's.

Root's parts get their clock, bus, disk, threads and fork server through their constructors. What is left are calls
that a module makes of the standard library or of `ottod.isolation` by name: the wall clock, random bytes, process
identities, the end of a session's processes. For the length of a run those names mean the machine's, in the modules
of `ottod.root` only; a name that could reach the real kernel and has no counterpart here is refused loudly.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from ottod.isolation import processes
from ottod.root import vitals
from tests.simulation.processes import ProcessTable
from tests.simulation.world import NS, World

NOT_ON_STAGE = {"ottod.root.daemon", "ottod.root.reaper", "ottod.root.zygote_client", "ottod.root.lock"}
"""Root's outermost shell: here the machine takes its place."""
HARMLESS = {"closure", "limits_for", "next_look_s"}
"""Functions of `ottod.isolation` that only compute."""


class Stage:
    """The machine that is being simulated now. The stand-ins ask it at each call."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.processes: ProcessTable | None = None

    @property
    def now(self) -> World:
        assert self.world is not None, "root's code runs outside a simulation"
        return self.world


class _Module:
    """A module with some of its names replaced."""

    def __init__(self, real: ModuleType, **names: Any) -> None:
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _modules(stage: Stage) -> dict[int, Any]:
    clock = _Module(
        time,
        time_ns=lambda: stage.now.wall_ns,
        time=lambda: stage.now.wall_ns / NS,
        monotonic=lambda: stage.now.now_ns / NS,
        monotonic_ns=lambda: stage.now.now_ns,
        perf_counter_ns=lambda: stage.now.now_ns,
        perf_counter=lambda: stage.now.now_ns / NS,
        sleep=_refuse("time.sleep"),
    )
    kernel = _Module(
        os, urandom=lambda size: stage.now.random.randbytes(size), getpid=lambda: 2, kill=_refuse("kill")
    )
    chance = _Module(
        random,
        random=lambda: stage.now.random.random(),
        uniform=lambda low, high: stage.now.random.uniform(low, high),
        SystemRandom=lambda: stage.now.random,
    )
    secret = _Module(
        secrets,
        token_bytes=lambda size=32: stage.now.random.randbytes(size),
        token_hex=lambda size=32: stage.now.random.randbytes(size).hex(),
        SystemRandom=lambda: stage.now.random,
    )
    return {id(time): clock, id(os): kernel, id(random): chance, id(secrets): secret}


def _refuse(name: str) -> Callable[..., None]:
    def refused(*_arguments: object, **_named: object) -> None:
        raise AssertionError(f"root's loop called {name}, which a simulated machine does not have")

    return refused


def _functions(stage: Stage) -> dict[object, Callable[..., Any]]:
    def of_table(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            assert stage.processes is not None
            return getattr(stage.processes, name)(*arguments, **named)

        return call

    found: dict[object, Callable[..., Any]] = {vitals.look: of_table("look")}
    for name in ("identify", "is_alive", "send_signal", "survivors", "kill_survivors", "kill_tree"):
        found[getattr(processes, name)] = of_table(name)
    found[os.urandom] = lambda size: stage.now.random.randbytes(size)
    found[time.time_ns] = lambda: stage.now.wall_ns
    found[time.monotonic] = lambda: stage.now.now_ns / NS
    found[time.monotonic_ns] = lambda: stage.now.now_ns
    return found


def _reaches_the_kernel(name: str, value: object) -> bool:
    return isinstance(value, FunctionType) and value.__module__.startswith("ottod.isolation") and name not in HARMLESS


@contextmanager
def set_stage() -> Iterator[Stage]:
    """Root's modules on the stage; everything is put back at the end."""
    stage = Stage()
    modules, functions = _modules(stage), _functions(stage)
    changed: list[tuple[ModuleType, str, Any]] = []
    cast = [name for name in sys.modules if name.startswith("ottod.root.") and name not in NOT_ON_STAGE]
    for module in [sys.modules[name] for name in sorted(cast)]:
        for name, value in list(vars(module).items()):
            stand_in = modules.get(id(value))
            if stand_in is None and callable(value) and not isinstance(value, type):
                stand_in = functions.get(value)
            if stand_in is not None:
                changed.append((module, name, value))
            elif _reaches_the_kernel(name, value):
                changed.append((module, name, value))
                stand_in = _refuse(f"{value.__module__}.{name}")
            if stand_in is not None:
                setattr(module, name, stand_in)
    try:
        yield stage
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
