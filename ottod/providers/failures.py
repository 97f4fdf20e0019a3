"""HTTP statuses, error bodies and broken connections as `ProviderError`.

One table for all providers, so that a 429 means the same to the caller whoever sent it. Messages are one line,
bounded, and never contain the key.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

from ottod.errors import ProviderError

MAX_MESSAGE_CHARS = 300
"""A provider's own words are cut here; the rest helps nobody in one line."""
MAX_RETRY_AFTER_S = 365 * 86_400.0
"""No provider means more than that, whatever it says."""

_LONG_CONTEXT = (
    "prompt is too long",
    "input is too long",
    "context length",
    "context_length",
    "context window",
    "maximum context",
    "too many tokens",
)
_STATUS_OF_KIND = {
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "insufficient_quota": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "context_length_exceeded": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "api_error": 500,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a failure is about: a provider of the configuration.

    `key_variable` is empty when it is not known; `key` is there only to be blotted out of messages.
    """

    name: str
    base_url: str
    key_variable: str
    key: str = ""

    def __repr__(self) -> str:
        return f"Peer(name={self.name!r}, base_url={self.base_url!r})"


def one_line(text: str, peer: Peer) -> str:
    """The text on one line, bounded, without the key."""
    if peer.key:
        text = text.replace(peer.key, "…")
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def status_failure(
    peer: Peer,
    status: int,
    *,
    kind: str = "",
    message: str = "",
    headers: Mapping[str, str] | None = None,
    has_begun: bool = False,
) -> ProviderError:
    """A refusal with an HTTP status, or with a `kind` that stands for one (status 0: the kind decides).

    `has_begun`: it came within an answer that had begun.
    """
    kind_status = _STATUS_OF_KIND.get(kind, 0)
    # Some APIs send an exhausted quota as 429, which retrying does not mend: the kind knows better.
    status = kind_status if kind_status in (402, 413) or not status else status
    headers = headers or {}
    words = one_line(message, peer)
    said = f"{peer.name}: {status or 'error'}{f' {kind}' if kind else ''}{f': {words}' if words else ''}"
    if status in (400, 413, 422) and (status == 413 or any(hint in message.lower() for hint in _LONG_CONTEXT)):
        mend = "shorten the conversation or choose a model with a larger context"
        return ProviderError(said, code="context_too_long", mend=mend, has_begun=has_begun)
    if status == 401:
        # The body of a 401 may quote the key it was given, so it is not repeated.
        return ProviderError(f"{peer.name} does not accept the API key (401)", code="auth", mend=key_mend(peer))
    if status == 403:
        return ProviderError(said, code="auth", mend=f"the key may not use this model; {key_mend(peer)}")
    if status == 402:
        mend = f"the account behind provider {peer.name} has no credit left"
        return ProviderError(said, code="refused", mend=mend, has_begun=has_begun)
    if status == 404:
        return ProviderError(
            said, code="bad_request", mend=f"check the model's name and providers.{peer.name}.base_url in otto.yml"
        )
    code = (
        "rate_limited"
        if status == 429
        else "timeout"
        if status in (408, 504)
        else "overloaded"
        if status in (409, 425) or status >= 500 or status == 0
        else "bad_request"
    )
    retryable = code != "bad_request" and headers.get("x-should-retry", "").lower() != "false"
    return ProviderError(
        said, code=code, retryable=retryable, retry_after_s=retry_after_s(headers), has_begun=has_begun
    )


def key_mend(peer: Peer) -> str:
    """Where the key comes from."""
    variable = peer.key_variable or f"the variable that providers.{peer.name}.api_key_env names"
    return f"set {variable} to a valid key, or providers.{peer.name}.api_key_file in otto.yml"


def no_key(peer: Peer) -> ProviderError:
    """No call is made without a key."""
    return ProviderError(f"{peer.name}: no API key", code="auth", mend=key_mend(peer))


def root_cause(error: BaseException) -> str:
    """The system's own word on why a connection failed, if it is in the chain; else the outermost one's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, OSError) and cause.strerror:
            # Event loops put their own words there; resolvers use numbers below 0 and good words.
            number = cause.errno or 0
            return (os.strerror(number) if number > 0 else cause.strerror).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error.__cause__ or error) or type(error).__name__


def no_connection(peer: Peer, why: str) -> ProviderError:
    """The request never reached the provider."""
    return ProviderError(
        f"{peer.name}: cannot connect to {peer.base_url}: {one_line(why, peer)}",
        code="connection",
        retryable=peer.base_url.startswith(("http://", "https://")),
        mend=f"check the network, and providers.{peer.name}.base_url in otto.yml",
    )


def cut(peer: Peer, why: str) -> ProviderError:
    """The stream ended before the response did."""
    return ProviderError(f"{peer.name}: the stream broke off: {one_line(why, peer)}", code="cut", retryable=True)


def malformed(peer: Peer, why: str) -> ProviderError:
    """The provider said something that its protocol does not allow."""
    return ProviderError(f"{peer.name}: unreadable response: {one_line(why, peer)}", code="malformed", retryable=True)


def not_a_stream(peer: Peer, content_type: str) -> ProviderError:
    """An answer that is no event stream: another kind of server, or one that does not stream."""
    return ProviderError(
        f"{peer.name}: expected an event stream, got {one_line(content_type, peer)}",
        code="malformed",
        mend=f"check providers.{peer.name}.base_url in otto.yml; the server must be able to stream",
    )


def too_slow(peer: Peer, *, timeout_s: float, idle: bool) -> ProviderError:
    """A deadline passed."""
    what = f"nothing came for {timeout_s:g} s" if idle else f"no complete response after {timeout_s:g} s"
    setting = "idle_timeout_s" if idle else "timeout_s"
    return ProviderError(
        f"{peer.name}: {what}", code="timeout", retryable=True, mend=f"raise {setting} if the model needs longer"
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What the provider asks for, in seconds: `retry-after-ms`, or `retry-after` as seconds or as a date."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            asked_s = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        return _believed_s(asked_s) if math.isfinite(asked_s) else None
    try:
        return _believed_s(parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _believed_s(asked_s: float) -> float:
    return min(max(0.0, asked_s), MAX_RETRY_AFTER_S)
