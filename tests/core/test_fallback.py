"""What is tried for a model call, in which order, and after which failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ottod.core.fallback import Step, chain, falls_back, may_reroute
from ottod.errors import Failure
from ottod.protocol.specs import Resort

RESORTS = st.lists(st.sampled_from(["model", "cache", "rule", "human"]), unique=True).map(tuple)


def shown(resorts: tuple[Resort, ...], models: int) -> list[str]:
    return [
        f"{step.kind}{step.target}" if step.kind == "model" else step.kind for step in chain(resorts, models=models)
    ]


@pytest.mark.parametrize(
    ("resorts", "models", "order"),
    [
        ((), 1, ["model0"]),
        (("model",), 1, ["model0"]),
        (("model",), 3, ["model0", "model1", "model2"]),
        (("model", "cache", "rule", "human"), 2, ["model0", "model1", "cache", "rule", "human"]),
        (("cache", "model"), 2, ["model0", "cache", "model1"]),
        (("human",), 1, ["model0", "human"]),
    ],
)
def test_the_order_is_that_of_the_list(resorts: tuple[Resort, ...], models: int, order: list[str]) -> None:
    """The agent's own model first, then what the file says."""
    assert shown(resorts, models) == order


@given(RESORTS, st.integers(1, 5))
def test_every_model_is_tried_once_if_models_are_wanted(resorts: tuple[Resort, ...], models: int) -> None:
    """And everything else that is listed, once."""
    steps = chain(resorts, models=models)
    tried = [step.target for step in steps if step.kind == "model"]
    assert tried == (list(range(models)) if "model" in resorts else [0])
    assert [s.kind for s in steps if s.kind != "model"] == [r for r in resorts if r != "model"]
    assert steps[0] == Step(kind="model")


@pytest.mark.parametrize(
    ("resorts", "may"), [((), False), (("model",), True), (("model", "rule"), True), (("cache", "model"), False)]
)
def test_the_next_model_is_asked_at_once_only_if_nothing_comes_before(resorts: tuple[Resort, ...], may: bool) -> None:
    """Root may choose among models, and knows nothing of the rest."""
    assert may_reroute(resorts) is may


@pytest.mark.parametrize(
    ("code", "retryable", "falls"),
    [
        ("overloaded", True, True),
        ("rate_limited", True, True),
        ("breaker_open", True, True),
        ("timeout", True, True),
        ("refused", False, True),
        ("auth", False, False),
        ("bad_request", False, False),
        ("context_too_long", False, False),
    ],
)
def test_only_the_providers_faults_are_reasons(code: str, retryable: bool, falls: bool) -> None:
    """A wrong key or request is told, and nothing stands in for it."""
    assert falls_back(Failure(code=code, message="m", retryable=retryable)) is falls
