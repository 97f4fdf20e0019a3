"""What is sent, and what the answers mean."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ottod.errors import ToolError
from ottod.protocol.sinks import Sink, SinkGrants
from ottod.protocol.toolio import WebRequest, WebResponse
from ottod.sinks.base import Undelivered, described
from ottod.sinks.webhook import Webhook, signature
from tests.sinks.parcels import parcel


class FakeWeb:
    """Answers with one status, or fails with one code."""

    def __init__(self, status: int = 200, code: str = "", **headers: str) -> None:
        self.status, self.code, self.headers = status, code, headers
        self.asked: list[WebRequest] = []

    async def fetch(self, request: WebRequest, *, timeout_s: float) -> WebResponse:
        self.asked.append(request)
        if self.code:
            raise ToolError("it failed", code=self.code)
        headers = {name.replace("_", "-"): value for name, value in self.headers.items()}
        return WebResponse(url=request.url, status=self.status, headers=headers, body=b"why\nnot")


def post(web: FakeWeb, grants: SinkGrants | None = None, secret: str = "") -> str:
    sink = Sink(to="webhook", url="https://x.example/y", secret=secret)
    return asyncio.run(Webhook(sink, web, grants or SinkGrants()).deliver(parcel())).place


@pytest.mark.parametrize(
    ("web", "is_final", "retry_after_s"),
    [
        (FakeWeb(400), True, None),
        (FakeWeb(401), True, None),
        (FakeWeb(409), True, None),
        (FakeWeb(302, location="/z"), True, None),
        (FakeWeb(408), False, None),
        (FakeWeb(429, retry_after="7"), False, 7.0),
        (FakeWeb(503, retry_after="tomorrow"), False, None),
        (FakeWeb(code="unreachable"), False, None),
        (FakeWeb(code="timeout"), False, None),
        (FakeWeb(code="bad_response"), False, None),
        (FakeWeb(code="host_denied"), True, None),
        (FakeWeb(code="address_denied"), True, None),
    ],
)
def test_what_is_worth_trying_again(web: FakeWeb, is_final: bool, retry_after_s: float | None) -> None:
    with pytest.raises(Undelivered) as caught:
        post(web)
    assert (caught.value.is_final, caught.value.retry_after_s) == (is_final, retry_after_s)


def test_a_request_is_signed_keyed_and_the_same_each_time() -> None:
    web = FakeWeb(201, location="https://x.example/y/7")
    grants = SinkGrants(secrets={"key": "a secret of some length"})
    assert post(web, grants, "key") == post(web, grants, "key") == "https://x.example/y/7"
    first, second = web.asked
    assert first == second and first.method == "POST" and not first.follows
    headers = dict(first.headers)
    assert headers["Otto-Signature"] == signature(first.body, "a secret of some length")
    assert headers["Idempotency-Key"] == json.loads(first.body)["delivery"] == parcel().key
    with pytest.raises(Undelivered, match="not there") as caught:
        post(web, SinkGrants(), "key")
    assert caught.value.is_final and len(web.asked) == 2, "unsigned nothing leaves"


@example(data=b"\x01\x80\x01\x00", bound=3)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)), bound=st.integers(0, 250))
def test_content_comes_back_as_it_was(data: bytes, bound: int) -> None:
    """Whole if it fits; else its beginning, cut between characters, and said to be cut."""
    said = json.loads(json.dumps(described(parcel(data), content_bytes=bound)))["content"]
    text = said["data"]
    back = base64.b64decode(text) if said["encoding"] == "base64" else text.encode()
    assert data.startswith(back) and said["truncated"] == (len(data) > bound)
    assert len(back) >= min(bound, len(data)) - 3 or b"\0" not in data
    assert said["truncated"] or back == data
