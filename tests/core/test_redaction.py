"""Secrets are taken out of texts, whole or in pieces, and nothing else is."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottod.core.redaction import MARK, MAX_SECRET_CHARS, PIECE_CHARS, Redactor
from ottod.core.secret_shapes import MAX_KEY_BODY_CHARS, SHAPES, is_behind
from ottod.errors import Failure
from ottod.protocol.events import ToolFailed, ToolStarted
from ottod.protocol.model import ModelResponse, Text, Thinking, ToolCall
from ottod.protocol.usage import Usage

KEY = "sk-ant-api03-Zk3v8Qw1xY7t-LmN0pR4"
OTHER = "correct horse+battery/staple"
SECRETS = {"anthropic": KEY, "db": OTHER}
REDACTOR = Redactor(SECRETS)
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----"

HIDDEN = [
    ("key sk-proj-abcdefghijklm0123456789 there", "key [redacted:api-key] there"),
    ("ghp_" + "a1B2" * 9, "[redacted:github-token]"),
    ("github_pat_" + "a1B2" * 9 + ".", "[redacted:github-token]."),
    ("glpat-" + "a1B2c3-_" * 3, "[redacted:gitlab-token]"),
    ("AKIAABCDEFGHIJKLMNOP", "[redacted:aws-key]"),
    ("key=ASIAABCDEFGHIJKLMNOP,", "key=[redacted:aws-key],"),
    ("xoxb-1234567890-abcdef", "[redacted:slack-token]"),
    ("AIza" + "a1B2c" * 7, "[redacted:google-key]"),
    (f"a\n{PEM}\nb", "a\n[redacted:private-key]\nb"),
    (json.dumps(PEM), '"[redacted:private-key]"'),
    (f"cookie {JWT};", "cookie [redacted:jwt];"),
    ("Authorization: Bearer abcdef0123456789abcd", "Authorization: Bearer [redacted:authorization]"),
    ("authorization=abcdef0123456789abcd", "authorization=[redacted:authorization]"),
    ("Basic dXNlcjpwYXNzd29yZA==", "Basic [redacted:authorization]"),
    ("DB_PASSWORD=hunter22x more", "DB_PASSWORD=[redacted:password] more"),
    ('{"password": "hunter22x"}', '{"password": "[redacted:password]"}'),
    ('"{\\"password\\": \\"hunter22x\\"}"', '"{\\"password\\": \\"[redacted:password]\\"}"'),
    ("aws_secret_access_key = abc123DEF456", "aws_secret_access_key = [redacted:secret]"),
    ("x-api-key: abc123DEF456", "x-api-key: [redacted:api-key]"),
    ("access_token=1234567890", "access_token=[redacted:token]"),
    ("postgres://bob:s3cret@host/db", "postgres://bob:[redacted:password]@host/db"),
    ("text\\nsk-proj-abcdefghijklm0123456789", "text\\n[redacted:api-key]"),
]
LEFT = [
    "sk-toggleable__content-very-long-name",
    "task-force-0123456789abcdefghijkl",
    "password: str | None = None",
    "token = base64url_decode(x)",
    "password=get_password2(user)",
    "tokens1 = tokens[0]",
    "secret_names = {'a'}",
    "http://localhost:8080/path",
    "git@host:name/repository",
    "a basic understanding of bearer authentication-mechanisms",
    "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----",
    "----------------------------------------",
    "max_tokens: 123456789",
    "eyJhbGciOiJIUzI1NiJ9 alone",
    "[redacted:password]",
    "password=[redacted:password]",
]


def streamed(redactor: Redactor, pieces: list[str]) -> str:
    stream = redactor.stream()
    return "".join(stream.feed(piece) for piece in pieces) + stream.rest()


@pytest.mark.parametrize(("text", "redacted"), HIDDEN, ids=[r for _, r in HIDDEN])
def test_known_shapes_are_hidden(text: str, redacted: str) -> None:
    """Whole, and a character at a time."""
    assert REDACTOR.text(text) == redacted
    assert streamed(REDACTOR, list(text)) == redacted


@pytest.mark.parametrize("text", LEFT)
def test_what_only_speaks_of_keys_is_left(text: str) -> None:
    """Prose and program text pass unchanged, as the same object when whole."""
    assert REDACTOR.text(text) is text
    assert streamed(REDACTOR, list(text)) == text


@pytest.mark.parametrize("name", list(SECRETS))
@pytest.mark.parametrize("padding", ["", "x", "xy", "{key: "])
def test_known_secrets_are_hidden_in_every_form(name: str, padding: str) -> None:
    """As they are, base64 at any offset, with both alphabets, percent-encoded, JSON-escaped, hexadecimal."""
    secret = SECRETS[name]
    data = (padding + secret + "}").encode()
    forms = [
        padding + secret,
        quote(padding + secret, safe=""),
        json.dumps({"k": padding + secret}),
        data.hex(),
        data.hex().upper(),
    ]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms.append(encode(data).decode())
    for form in forms:
        redacted = REDACTOR.text(form)
        assert f"[redacted:{name}]" in redacted, form
        assert secret not in redacted
        assert streamed(REDACTOR, list(form)) == redacted
        # What is left of an encoded secret is too little to be one.
        assert len(redacted) < len(form) - len(secret) * 3 // 4 + len(f"[redacted:{name}]") + 4


def test_the_lines_of_a_long_secret_are_secrets() -> None:
    """A key of several lines is found line by line, and its first line is nobody's secret."""
    redactor = Redactor({"deploy": "-----BEGIN THING-----\nAAAABBBBCCCCDDDD0\nEEEEFFFFGGGGHHHH1\n"})
    text = "x AAAABBBBCCCCDDDD0 -----BEGIN THING----- EEEEFFFFGGGGHHHH1"
    assert redactor.text(text) == "x [redacted:deploy] -----BEGIN THING----- [redacted:deploy]"


def test_short_secrets_are_not_looked_for() -> None:
    """A secret of a few characters would be found everywhere."""
    assert Redactor({"pin": "1234"}).text("1234 1234") == "1234 1234"


# ---------------------------------------------------------------- properties

FRAGMENTS = [
    KEY,
    OTHER,
    JWT,
    PEM,
    *[text for text, _ in HIDDEN],
    *LEFT,
    base64.b64encode(("a" + KEY).encode()).decode(),
    "sk-",
    "s",
    "k-",
    "password=",
    "Bearer ",
    "://a:",
    "@",
    "-----BEGIN ",
    "PRIVATE KEY-----",
    "-----END PRIVATE KEY-----",
    "eyJ",
    ".eyJ",
    "=",
    ": ",
    '"',
    "\\n",
]


def cuts(text: str) -> st.SearchStrategy[str | None]:
    return st.one_of(
        st.sampled_from([f for f in FRAGMENTS if text in f] or FRAGMENTS),
        st.sampled_from(FRAGMENTS).flatmap(lambda f: st.integers(0, len(f)).map(lambda n: f[:n])),
        st.sampled_from(FRAGMENTS).flatmap(lambda f: st.integers(0, len(f)).map(lambda n: f[n:])),
        st.text(alphabet="sk-gh_pA1e:=@ \n\"'.a0", max_size=6),
    )


TEXTS = st.lists(cuts(""), max_size=8).map(lambda parts: "".join(part or "" for part in parts))


@settings(max_examples=300)
@given(text=TEXTS, data=st.data())
def test_however_it_is_cut_the_same_comes_out(text: str, data: st.DataObject) -> None:
    """Pieces give what the whole gives; no known secret is in it; what is held back is bounded."""
    whole = REDACTOR.text(text)
    assert not REDACTOR.contains_known(MARK.sub("·", whole))
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    stream = REDACTOR.stream()
    out = []
    for piece in pieces:
        out.append(stream.feed(piece))
        assert stream.held_chars <= 700
    assert "".join(out) + stream.rest() == whole
    assert streamed(REDACTOR, list(text)) == whole


@settings(max_examples=300)
@given(text=TEXTS)
def test_twice_is_once(text: str) -> None:
    """What has been redacted is not changed again, at whatever surface."""
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


@given(
    secrets=st.lists(st.text(alphabet="ab-", min_size=8, max_size=12), min_size=1, max_size=3, unique=True),
    text=st.text(alphabet="ab-", max_size=80),
    data=st.data(),
)
def test_known_secrets_agree_with_a_naive_search(secrets: list[str], text: str, data: st.DataObject) -> None:
    """From the left, the longest first: as looking at every place would find them."""
    redactor = Redactor({f"n{i}": secret for i, secret in enumerate(secrets)}, shapes=())
    forms = sorted(((s, f"n{i}") for i, s in enumerate(secrets)), key=lambda form: -len(form[0]))
    expected, at = "", 0
    while at < len(text):
        found = next(((s, name) for s, name in forms if text.startswith(s, at)), None)
        expected += f"[redacted:{found[1]}]" if found else text[at]
        at += len(found[0]) if found else 1
    assert redactor.text(text) == expected
    middle = data.draw(st.integers(0, len(text)))
    assert streamed(redactor, [text[:middle], text[middle:]]) == expected


# ---------------------------------------------------------------- bounds and structs


def test_what_never_ends_is_not_kept() -> None:
    """A key that goes on for ever is swallowed piece by piece, a private key up to its bound; then text goes on."""
    stream = REDACTOR.stream()
    assert stream.feed("sk-0123456789abcdefghij") == "[redacted:api-key]"
    for _ in range(100):
        assert stream.feed("a" * 1000) == "" and stream.held_chars <= 1
    assert stream.feed(" and on") == " and on"
    stream = REDACTOR.stream()
    assert stream.feed("-----BEGIN PRIVATE KEY-----\n") == "[redacted:private-key]"
    given_back = sum(len(stream.feed("a" * 1000)) for _ in range(MAX_KEY_BODY_CHARS // 1000 + 10))
    assert given_back > 0
    assert Redactor({"long": "x1" * MAX_SECRET_CHARS}).contains_known("x1" * MAX_SECRET_CHARS)


def test_structs_are_redacted_field_by_field() -> None:
    """Strings at any depth; what has none of it is the same object."""
    failure = Failure(code="tool", message=f"bad key {KEY}", mend="password=hunter22x")
    event = ToolFailed(call="c", tool="shell", failure=failure, output="fine")
    redacted = REDACTOR.value(event)
    assert redacted.failure.message == "bad key [redacted:anthropic]"
    assert redacted.failure.mend == "password=[redacted:password]"
    clean = ToolFailed(call="c", tool="shell", failure=Failure(code="tool", message="no"))
    assert REDACTOR.value(clean) is clean
    assert REDACTOR.value({"a": [KEY, 1, None]}) == {"a": ["[redacted:anthropic]", 1, None]}


def test_arguments_may_be_program_text() -> None:
    """In a call's arguments keys are hidden; what stands behind a name is somebody's source code."""
    started = ToolStarted(call="c", tool="fs_write", arguments=json.dumps({"text": f"password=hunter22x\n{KEY}"}))
    assert json.loads(REDACTOR.value(started).arguments) == {"text": "password=hunter22x\n[redacted:anthropic]"}


def test_files_are_redacted_if_they_are_text() -> None:
    """As arguments are; what is no UTF-8 is left, and what holds no secret is the same object."""
    assert (
        REDACTOR.data(f"é {KEY} password=hunter22x".encode()) == "é [redacted:anthropic] password=hunter22x".encode()
    )
    for data in (b"\xff" + KEY.encode(), b"nothing"):
        assert REDACTOR.data(data) is data


def test_changed_thoughts_lose_their_signature() -> None:
    """A provider refuses thoughts that are not what it signed; others keep what they have."""
    signed = Thinking(text=f"the key is {KEY}", signature="c2ln", provider="anthropic")
    clean = Thinking(text="nothing", signature="sk-0123456789abcdefghij", opaque=KEY, provider="anthropic")
    response = ModelResponse(
        blocks=(signed, clean, Text(text=KEY), ToolCall(call="1", tool="t", arguments=f'"{KEY}"')),
        stop="end",
        usage=Usage(),
    )
    blocks = REDACTOR.value(response).blocks
    assert blocks[0] == Thinking(text="the key is [redacted:anthropic]")
    assert blocks[1] is clean
    assert blocks[2] == Text(text="[redacted:anthropic]")
    assert blocks[3] == ToolCall(call="1", tool="t", arguments='"[redacted:anthropic]"')


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "".join(step.chars for step in s.steps[:4]))
def test_every_shape_can_be_found_and_is_bounded(shape: object) -> None:
    """Each has heads or stands behind a name, and its steps end."""
    assert shape in SHAPES
    assert is_behind("x password", 10, ("password",)) and not is_behind("x passwords", 11, ("password",))
    assert sum(step.most for step in shape.steps) <= 600  # type: ignore[attr-defined]
    assert list(shape.heads()) or shape.behind  # type: ignore[attr-defined]


LONG_KEY = "sk-ant-api03-" + "Zk3v8Qw1xY7tLmN0pR4b" * 5 + "+/AA"


@pytest.mark.parametrize("width", [60, 64, 76])
@pytest.mark.parametrize("before", ["", "x=", "HOME=/root\nKEY="])
def test_an_encoding_in_lines_is_hidden(width: int, before: str) -> None:
    """Programs that encode break their lines; what is left beside a break is less than a piece."""
    redactor = Redactor({"anthropic": LONG_KEY})
    data = (before + LONG_KEY + "\n").encode()
    for encoded in (base64.b64encode(data).decode(), data.hex()):
        text = "\n".join(encoded[at : at + width] for at in range(0, len(encoded), width))
        redacted = redactor.text(text)
        assert "[redacted:anthropic]" in redacted
        left = [line for line in MARK.sub(" ", redacted).split() if len(line) > 2 * PIECE_CHARS]
        assert not left, redacted


@pytest.mark.parametrize("safe", ["", "/", "!'()*", "/!'()*"])
def test_whoever_percent_encodes(safe: str) -> None:
    """Some leave slashes as they are, some brackets, some write small letters, some a plus for a space."""
    secret = "correct horse+battery/staple(1)!é"
    redactor = Redactor({"db": secret})
    quoted = quote(secret, safe=safe)
    if safe != "/!'()*":
        assert redactor.text(f"q={quoted}&") == "q=[redacted:db]&"
        assert redactor.text(f"q={quoted.lower()}&") == "q=[redacted:db]&"
    assert redactor.text(quote_plus(secret)) == "[redacted:db]"


@given(cut=st.integers(0, len(KEY)), before=st.text(alphabet="ab \n", max_size=20))
def test_a_text_may_be_cut_anywhere(cut: int, before: str) -> None:
    """Of a beginning nothing is said that may be the beginning of a secret, of an end nothing that ends one."""
    begun = REDACTOR.beginning(before + KEY[:cut])
    assert begun in (before, before + "[redacted:anthropic]") or before.startswith(begun)
    ended = REDACTOR.ending(KEY[cut:] + " after", before=before + KEY[:cut])
    assert ended in (" after", "[redacted:anthropic] after")
    assert REDACTOR.ending("b c", before="a ") == "b c"


def test_a_private_key_is_hidden_line_by_line() -> None:
    """A file that is read by lines has as many as before, and no part of the key in any of them."""
    text = f"a\n{PEM}\nb\n"
    hidden = REDACTOR.keys_hidden(text)
    assert hidden.splitlines() == ["a", *["[redacted:private-key]"] * 4, "b"]
    open_key = "-----BEGIN PRIVATE KEY-----\nMIIE\n" * 3
    assert "MIIE" not in REDACTOR.keys_hidden(open_key)
    assert REDACTOR.keys_hidden("no key") == "no key"
    assert len(REDACTOR.keys_hidden("-----BEGIN PRIVATE KEY-----" * 20_000)) > 0, "in no time to speak of"
