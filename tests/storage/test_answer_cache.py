"""Answers on disk: bounded, the least lately used go first, and what is damaged is no answer."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ottod.storage.answer_cache import AnswerCache


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def test_an_answer_outlives_its_cache(tmp_path: Path) -> None:
    """It is found again by another daemon; what was never kept is not."""
    AnswerCache(tmp_path / "answers").put(key("a"), b"hello")
    again = AnswerCache(tmp_path / "answers")
    assert (again.get(key("a")), again.get(key("b"))) == (b"hello", b"")
    assert (tmp_path / "answers").stat().st_mode & 0o777 == 0o700


def test_the_order_of_use_outlives_its_cache_whatever_the_clock_says(tmp_path: Path) -> None:
    """Answers used in the same tick, or with the clock set back in between, are still told apart."""
    cache = AnswerCache(tmp_path)
    for name in "zyx":
        cache.put(key(name), b"hello")
    os.utime(tmp_path / key("x"), ns=(2**62, 2**62))
    again = AnswerCache(tmp_path)
    assert again.get(key("z")) == again.get(key("y")) == b"hello"
    dates = {name: (tmp_path / key(name)).stat().st_mtime_ns for name in "xyz"}
    assert dates["x"] < dates["z"] < dates["y"]
    third = AnswerCache(tmp_path, max_answers=3)
    third.put(key("w"), b"hello")
    assert [bool(third.get(key(name))) for name in "wxyz"] == [True, False, True, True]


def test_every_damaged_file_is_no_answer(tmp_path: Path) -> None:
    """Cut anywhere, or with any bit turned, it is passed over and removed."""
    cache = AnswerCache(tmp_path)
    path = tmp_path / key("a")
    cache.put(key("a"), b"hello")
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [
        bytes([*whole[:i], whole[i] ^ (1 << bit), *whole[i + 1 :]]) for i in range(len(whole)) for bit in range(8)
    ]
    for data in damaged:
        cache.put(key("a"), b"hello")
        path.write_bytes(data)
        assert cache.get(key("a")) == b""
        assert not path.exists()


def test_a_write_that_was_cut_off_leaves_nothing(tmp_path: Path) -> None:
    """What a killed daemon has begun is swept away; strangers' files are left alone."""
    (tmp_path / f".{key('a')}").write_bytes(b"half")
    (tmp_path / "README").write_text("not ours")
    assert AnswerCache(tmp_path).get(key("a")) == b""
    assert os.listdir(tmp_path) == ["README"]


@pytest.mark.parametrize(("name", "answer"), [("../escape", b"x"), ("", b"x"), ("A" * 64, b"x"), ("0" * 64, b"")])
def test_what_is_no_key_is_refused(tmp_path: Path, name: str, answer: bytes) -> None:
    """A key can name no path, and an empty answer is none."""
    with pytest.raises(ValueError, match="key in hex"):
        AnswerCache(tmp_path).put(name, answer)
    assert AnswerCache(tmp_path).get(name) == b""


class CacheMachine(RuleBasedStateMachine):
    """Against an oracle in memory; the directory never holds more than its bounds."""

    @initialize(most=st.integers(1, 5), size=st.integers(20, 200))
    def begin(self, most: int, size: int) -> None:
        import tempfile

        self.place = tempfile.TemporaryDirectory(prefix="otto-answers-")
        self.most, self.size = most, size
        self.oracle: OrderedDict[str, bytes] = OrderedDict()
        self.reopen()

    @rule()
    def reopen(self) -> None:
        self.cache = AnswerCache(Path(self.place.name), max_bytes=self.size, max_answers=self.most)

    @rule(name=st.sampled_from("abcdefgh"), answer=st.binary(min_size=1, max_size=60))
    def put(self, name: str, answer: bytes) -> None:
        self.cache.put(key(name), answer)
        self.oracle.pop(name, None)
        self.oracle[name] = answer
        while len(self.oracle) > self.most or sum(len(a) + 4 for a in self.oracle.values()) > self.size:
            self.oracle.popitem(last=False)

    @rule(name=st.sampled_from("abcdefgh"))
    def get(self, name: str) -> None:
        assert self.cache.get(key(name)) == self.oracle.get(name, b"")
        if name in self.oracle:
            self.oracle.move_to_end(name)

    @invariant()
    def the_directory_is_bounded(self) -> None:
        held = [entry.stat().st_size for entry in os.scandir(self.place.name)]
        assert len(held) == len(self.oracle) <= self.most
        assert sum(held) <= self.size

    def teardown(self) -> None:
        self.place.cleanup()


TestCache = CacheMachine.TestCase
TestCache.settings = hypothesis_settings(max_examples=40, stateful_step_count=30, deadline=None)
