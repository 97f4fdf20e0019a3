"""One meaning for every refusal, and no key in any of them."""

from __future__ import annotations

from email.utils import formatdate
from time import time

import pytest

from ottod.providers.failures import MAX_RETRY_AFTER_S, Peer, one_line, retry_after_s, root_cause, status_failure

PEER = Peer(name="p", base_url="http://h", key_variable="P_KEY", key="sk-very-secret")


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e300"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "-1e300"}, 0.0),
        ({"retry-after": "Fri, 01 Jan 9999 00:00:00 GMT"}, MAX_RETRY_AFTER_S),
        ({"retry-after": f"Fri, 01 Jan {10**30} 00:00:00 GMT"}, None),
        ({"retry-after-ms": "1e400"}, None),
    ],
)
def test_retry_after_is_seconds(headers: dict[str, str], expected_s: float | None) -> None:
    """Milliseconds, seconds or a date; nonsense is nothing."""
    assert retry_after_s(headers) == expected_s


def test_retry_after_as_a_date_counts_from_now() -> None:
    """A date in half a minute."""
    waited_s = retry_after_s({"retry-after": formatdate(time() + 30, usegmt=True)})
    assert waited_s is not None
    assert 25 < waited_s <= 30


def test_a_message_is_one_bounded_line_without_the_key() -> None:
    """Whatever the server's page looked like."""
    said = one_line("<html>\n  key sk-very-secret\n" + "x" * 5000, PEER)
    assert "\n" not in said
    assert "sk-very-secret" not in said
    assert len(said) == 300
    error = status_failure(PEER, 500, message="boom sk-very-secret\nline")
    assert "sk-very-secret" not in repr(error.failure())
    assert "sk-very-secret" not in repr(PEER)


def test_an_exhausted_quota_is_not_retried_though_it_comes_as_429() -> None:
    """Waiting does not bring money."""
    error = status_failure(PEER, 429, kind="insufficient_quota", message="You exceeded your current quota")
    assert (error.code, error.retryable) == ("refused", False)


def test_a_server_may_forbid_the_retry() -> None:
    """x-should-retry: false is believed."""
    assert not status_failure(PEER, 500, headers={"x-should-retry": "false"}).retryable
    assert status_failure(PEER, 500, headers={"x-should-retry": "true"}).retryable


def test_the_mend_names_the_setting_of_this_very_provider() -> None:
    """A provider of one's own has a variable of one's own."""
    assert "P_KEY" in status_failure(PEER, 401).mend
    own = Peer(name="lab", base_url="http://h", key_variable="")
    assert "providers.lab.api_key_env" in status_failure(own, 401).mend


def test_the_root_cause_of_a_connection_error_is_the_systems_word() -> None:
    """Deep in the chain, also inside a group."""
    inner = ConnectionRefusedError(111, "Connection refused")
    outer = RuntimeError("All attempts failed")
    outer.__cause__ = ExceptionGroup("many", [inner])
    assert root_cause(outer) == "connection refused"
    assert root_cause(RuntimeError("just this")) == "just this"
