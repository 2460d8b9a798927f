"""shards.philox against the authors' known answers, and a slow reference in Python integers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.philox import name_words, philox, uniform

WORD = st.integers(0, 2**32 - 1)


def reference(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (p1 >> 32) ^ c1 ^ k0,
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c3 ^ k1,
            p0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def test_known_answers():
    zero = philox(np.zeros((1, 4), np.uint32), (0, 0))
    assert [f"{v:08x}" for v in zero[0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = philox(np.full((1, 4), 0xFFFFFFFF, np.uint32), (0xFFFFFFFF, 0xFFFFFFFF))
    assert [f"{v:08x}" for v in ones[0]] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_matches_reference(counter, key):
    assert philox(np.array([counter], np.uint32), key)[0].tolist() == reference(counter, key)


def test_uniform_is_uniform():
    counter = np.zeros((20_000, 4), np.uint32)
    counter[:, 0] = np.arange(20_000)
    values = uniform(counter, (1, 2))
    assert values.min() >= 0
    assert values.max() < 1
    histogram, _ = np.histogram(values, 10, (0, 1))
    assert np.abs(histogram / values.size - 0.1).max() < 0.005


def test_rows_do_not_depend_on_each_other():
    counter = np.random.default_rng(0).integers(0, 2**32, (50, 4), np.uint32)
    assert np.array_equal(philox(counter, (3, 4))[17], philox(counter[17:18], (3, 4))[0])


def test_name_words_are_words():
    low, high = name_words("00000001_000")
    assert 0 <= low < 2**32
    assert 0 <= high < 2**32
    assert name_words("a") != name_words("b")
