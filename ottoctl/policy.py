"""How patient a client is. Seconds, all of them."""

from __future__ import annotations

from ottod.errors import UnreachableError

DEFAULT_TIMEOUT_S = 10.0
DEFAULT_RECONNECT_S = 30.0
"""How long a daemon may be away before its clients give up what they wait for."""
PING_INTERVAL_S = 15.0
STOP_ANSWER_S = 30.0
"""Beyond a stop's grace: the time that proving the end may take."""
INTERRUPT_ANSWER_S = 75.0
"""A turn is over when its tools are down."""
RETRY_FIRST_S = 0.02
RETRY_MAX_S = 0.5
RESEND_S = 0.005
"""When the line is full: long enough not to spin, short enough not to be felt."""


def no_answer(endpoint: str, timeout_s: float) -> UnreachableError:
    """Something listens, and does not answer."""
    return UnreachableError(
        f"no answer from the daemon at {endpoint} within {timeout_s:g} s",
        mend="try again with a longer --timeout; see `ottoctl doctor`",
    )
