"""shards.index: DALI's index as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.index import Component, format_index, parse_index

KEYS = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)


def components(key: str, offset: int) -> list[Component]:
    return [
        Component(e, offset + i * 1024, 512, f"{key}.{e}")
        for i, e in enumerate(("jph", "lab", "json"))
    ]


@given(st.lists(st.tuples(KEYS, st.integers(0, 2**40)), max_size=12))
def test_round_trip(rows):
    samples = [components(key, offset) for key, offset in rows]
    assert parse_index(format_index(samples)) == samples


def test_text_is_dalis():
    text = format_index([components("k1", 512)])
    assert text == "v1.2 1\njph 512 512 k1.jph lab 1536 512 k1.lab json 2560 512 k1.json\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1.1 0\n",
        "v1.2 2\njph 0 1 a.jph\n",
        "v1.2 1\njph 0 1\n",
        "v1.2 1\njph x 1 a.jph\n",
        "v1.2 1\n\n",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError):
        parse_index(text)


def test_key_ends_at_the_first_dot():
    assert Component("jph", 0, 1, "a_b.jph").key == "a_b"
