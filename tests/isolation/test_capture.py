from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ottod.core.cut_text import cut_middle
from ottod.core.redaction import Redactor
from ottod.isolation.capture import BoundedOutput


def feed(chunks: list[bytes], max_bytes: int) -> BoundedOutput:
    output = BoundedOutput(max_bytes)
    for chunk in chunks:
        output.feed(chunk)
    return output


@given(text=st.text(), max_bytes=st.integers(1, 200), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_pieces_do_not_matter_and_the_bound_holds(text: str, max_bytes: int, cuts: list[int]) -> None:
    """However output is cut into pieces the result is the same; it is whole if it fits, else both its ends."""
    data = text.encode("utf-8", "replace")
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = feed([data[a:b] for a, b in itertools.pairwise(bounds)], max_bytes)
    whole = feed([data], max_bytes)
    assert pieces.text() == whole.text()
    assert pieces.total_bytes == len(data)
    assert pieces.is_truncated == (len(data) > max_bytes)
    if len(data) <= max_bytes:
        assert pieces.text() == data.decode()
    else:
        head, mark, tail = pieces.text().partition("\n[… ")
        tail = tail.partition("…]\n")[2]
        assert mark and data.decode().startswith(head) and data.decode().endswith(tail)
        assert len(head.encode()) + len(tail.encode()) <= max_bytes


@given(data=st.binary(max_size=600), max_bytes=st.integers(1, 200))
def test_any_bytes_give_bounded_text(data: bytes, max_bytes: int) -> None:
    """Bytes that are no text grow when they are shown, and are kept within the bound all the same."""
    text = feed([data], max_bytes).text()
    assert len(text.encode()) <= max_bytes + 60


def test_a_million_tiny_pieces_take_no_room() -> None:
    """One byte at a time costs no more memory than all at once."""
    output = BoundedOutput(1000)
    for _ in range(100_000):
        output.feed(b"x")
    assert output.total_bytes == 100_000
    assert len(output._tail) <= 100
    assert output.text() == "x" * 500 + "\n[… 99000 bytes not shown …]\n" + "x" * 500


def test_cut_middle_names_what_is_missing() -> None:
    """The mark counts the bytes that are not shown."""
    assert cut_middle("a" * 30, 10) == "aaaaa\n[… 20 bytes not shown …]\naaaaa"
    assert cut_middle("short", 10) == "short"
    assert cut_middle("a" * 30, 10, note="look") == "aaaaa\n[… 20 bytes not shown; look …]\naaaaa"


KEY = "sk-ant-api03-Zk3v8Qw1xY7t-LmN0pR4"


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 300_000), max_bytes=st.integers(2, 4000), chunk=st.sampled_from([7919, 65536, 400_000]))
@example(at=480, max_bytes=1000, chunk=65536)
@example(at=299_490, max_bytes=1000, chunk=65536)
def test_no_half_of_a_secret_stands_beside_the_gap(at: int, max_bytes: int, chunk: int) -> None:
    """Wherever a secret lies in what is too long: it is not there, or a mark is, or nothing but a mark's piece."""
    data = (b"line of text\n" * 25_000)[:300_000]
    data = data[:at] + KEY.encode() + data[at:]
    output = BoundedOutput(max_bytes, redactor=Redactor({"anthropic": KEY}))
    for begin in range(0, len(data), chunk):
        output.feed(data[begin : begin + chunk])
    shown = output.text()
    assert len(shown.encode()) <= max_bytes + 60
    pieces = [KEY[i : i + 5] for i in range(len(KEY) - 4)]
    assert not any(piece in shown for piece in pieces)


def test_half_of_a_private_key_does_not_stand_behind_the_gap() -> None:
    """Its beginning is in what is cut out, and the end that is shown would say nothing of it."""
    body = "\n".join(["MIIEowIBAAKCAQEA0123456789abcdefABCDEF"] * 40)
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\n"
    output = BoundedOutput(2000, redactor=Redactor())
    output.feed(b"x\n" * 200_000 + key.encode() + b"y\n" * 100)
    assert "MIIE" not in output.text() and output.text().endswith("y\ny\n")


def test_what_is_whole_is_left_as_it_is() -> None:
    """Tools read it; secrets are taken out of what they make of it."""
    output = BoundedOutput(1000, redactor=Redactor({"anthropic": KEY}))
    output.feed(KEY.encode())
    assert output.text() == KEY
