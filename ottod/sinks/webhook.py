"""Artifacts to whoever listens at a URL, as JSON.

    POST url
    Content-Type: application/json
    Idempotency-Key: SINK/ARTIFACT@VERSION       the same however often it is sent; also `delivery` in the body
    Otto-Signature: sha256=HEX                   HMAC-SHA256 of the body, if the sink has a secret

The body is what `described` makes of a parcel. On the wire it arrives at least once; a receiver that remembers keys
has it once. Any 2xx means that it has been taken. 408, 425, 429, 5xx and whatever is no answer are tried again, with
`Retry-After` heeded; another answer, a redirect included, is final: a redirect that was followed would take the body
where nobody meant it to go.
"""

from __future__ import annotations

import hashlib
import hmac
import json

from ottod.errors import ToolError
from ottod.protocol.sinks import Sink, SinkGrants
from ottod.protocol.toolio import Web, WebRequest
from ottod.sinks.base import Parcel, Receipt, Undelivered, described

AGAIN = frozenset({408, 425, 429})
FINAL_CODES = frozenset({"bad_url", "host_denied", "address_denied", "denied", "bad_arguments"})
MAX_SHOWN_CHARS = 200
SIGNATURE = "Otto-Signature"
KEY = "Idempotency-Key"


class Webhook:
    """`Destination` of one URL."""

    def __init__(self, sink: Sink, web: Web, grants: SinkGrants) -> None:
        self._sink = sink
        self._web = web
        self._grants = grants

    async def deliver(self, parcel: Parcel) -> Receipt:
        """See `Destination.deliver`."""
        sink = self._sink
        body = json.dumps(described(parcel, content_bytes=sink.content_bytes), ensure_ascii=False).encode()
        headers = [("Content-Type", "application/json"), (KEY, parcel.key)]
        if sink.secret:
            headers.append((SIGNATURE, signature(body, self._secret(sink.secret))))
        request = WebRequest(method="POST", url=sink.url, headers=tuple(headers), body=body, follows=False)
        try:
            answer = await self._web.fetch(request, timeout_s=sink.timeout_s)
        except ToolError as error:
            raise Undelivered(
                error.message, code=error.code, mend=_mend(error.code), is_final=error.code in FINAL_CODES
            ) from error
        if 200 <= answer.status < 300:
            return Receipt(place=answer.headers.get("location", "") or sink.url)
        said = " ".join(answer.body[:MAX_SHOWN_CHARS].decode("utf-8", "replace").split())
        raise Undelivered(
            f"{sink.label} answered {answer.status}" + (f": {said}" if said else ""),
            code=f"http_{answer.status}",
            is_final=answer.status < 500 and answer.status not in AGAIN,
            retry_after_s=_seconds(answer.headers.get("retry-after", "")),
        )

    def _secret(self, name: str) -> str:
        if name not in self._grants.secrets:
            why = self._grants.missing.get(name, "it is not there")
            raise Undelivered(f"the secret {name!r}: {why}", code="no_secret", is_final=True)
        return self._grants.secrets[name]


def signature(body: bytes, secret: str) -> str:
    """The value of the header by which a receiver knows who sent it."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() and len(text) < 7 else None


def _mend(code: str) -> str:
    return "name the host in sinks.hosts or sinks.local of otto.yml" if code.endswith("_denied") else ""
