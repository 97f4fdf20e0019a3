"""Wrong bytes, from a seed: random ones, damaged valid messages, and valid messages with wrong values."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "s-",
    "s-0000000000",
    "\0",
    "../../../etc/passwd",
    "é" * 300,
    "x" * 70_000,
    b"\xff\x00",
    [],
    {},
    [[[[]]]],
    {"type": "hello"},
    {"": {"": ""}},
)

DEEP = b"\x91" * 5000 + b"\x01"
BOMBS = (
    b"",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",  # an array that says it has four billion entries
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\x81\x81\x01\x02\x03",  # a map as a map's key
    b"\xc7\x0c\xff" + b"\xff" * 12,  # a time that does not exist
    b"\xa3\xed\xa0\x80",  # a lone surrogate
    DEEP,
    b"\x81\xa1a" * 5000 + b"\x01",
)


def random_frames(chance: random.Random) -> list[bytes]:
    """A message of random frames: mostly one, sometimes none at all worth the name, or many."""
    count = chance.choice((1, 1, 1, 1, 1, 1, 2, 3, 8))
    return [_random_bytes(chance) for _ in range(count)]


def _random_bytes(chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        return chance.choice(BOMBS)
    return chance.randbytes(chance.choice((0, 1, 2, 5, 20, 40, 41, 100, 1000)))


def damaged(chance: random.Random, data: bytes) -> bytes:
    """The message with some bytes flipped, cut, doubled, inserted, or replaced by something dangerous."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = out[at : at + chance.randrange(64)]
            case 3:
                out[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 4:
                out[at : at + 1] = chance.choice(BOMBS)
            case _ if out:
                out[at % len(out)] = chance.randrange(256)
    return bytes(out)


def with_wrong_value(chance: random.Random, data: bytes) -> bytes:
    """The same message with one field, at any depth, given an odd value, left out, or added."""
    tree = msgspec.msgpack.decode(data)
    places = list(_places(tree))
    if not places:
        return data
    container, key = chance.choice(places)
    match chance.randrange(5):
        case 0 if isinstance(container, dict):
            del container[key]
        case 1 if isinstance(container, dict):
            container[chance.choice(("type", "id", "body", "extra", ""))] = chance.choice(ODD_VALUES)
        case _:
            container[key] = chance.choice(ODD_VALUES)
    return msgspec.msgpack.encode(tree)


def _places(tree: Any) -> Any:
    if isinstance(tree, dict):
        for key in list(tree):
            yield tree, key
            yield from _places(tree[key])
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield tree, index
            yield from _places(item)


def mutated(chance: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the valid messages, spoiled in one of the ways."""
    data = chance.choice(seeds)
    return with_wrong_value(chance, data) if chance.random() < 0.5 else damaged(chance, data)
