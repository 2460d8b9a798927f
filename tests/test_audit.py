"""ingest.audit: of equal pictures one stays, unless nobody knows its label."""

import random

from hypothesis import given
from hypothesis import strategies as st

from ingest.audit import CONFLICT, SAME_BYTES, SAME_PIXELS, Candidate, find_duplicates

CANDIDATES = st.lists(
    st.tuples(st.sampled_from("xyz"), st.integers(0, 6), st.integers(0, 1)), max_size=25
).map(
    lambda rows: [
        # The bytes decide the pixels, never the other way round.
        Candidate(f"k{i:02d}", (label,), f"{pixels}-{version}", str(pixels))
        for i, (label, pixels, version) in enumerate(rows)
    ]
)


def test_same_bytes_and_same_pixels():
    first = Candidate("a", ("x",), "1", "p")
    dropped = find_duplicates(
        [Candidate("c", ("x",), "1", "p"), Candidate("b", ("x",), "2", "p"), first]
    )
    assert dropped.keys() == {"b", "c"}
    assert (dropped["b"].reason, dropped["b"].duplicate_of) == (SAME_PIXELS, "a")
    assert (dropped["c"].reason, dropped["c"].duplicate_of) == (SAME_BYTES, "a")


def test_other_labels_drop_the_whole_group():
    dropped = find_duplicates([Candidate("a", ("x",), "1", "p"), Candidate("b", ("y",), "1", "p")])
    assert {d.reason for d in dropped.values()} == {CONFLICT}
    assert dropped["a"].duplicate_of == "b"
    assert dropped["b"].duplicate_of == "a"


def test_the_order_of_labels_is_no_conflict():
    pair = [Candidate("a", ("x", "y"), "1", "p"), Candidate("b", ("y", "x"), "1", "p")]
    assert find_duplicates(pair).keys() == {"b"}


@given(CANDIDATES, st.randoms())
def test_against_pairwise_comparison(candidates, rng: random.Random):
    dropped = find_duplicates(candidates)
    for one in candidates:
        equal = [c for c in candidates if c.pixel_sha256 == one.pixel_sha256]
        conflict = len({c.labels for c in equal}) > 1
        assert (one.key in dropped) == (conflict or one.key != min(c.key for c in equal))
    rng.shuffle(candidates)
    assert find_duplicates(candidates) == dropped
