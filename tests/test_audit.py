"""ingest.audit: of equal pictures one stays, unless nobody knows its label."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.audit import (
    CONFLICT,
    NEAR,
    NEAR_CONFLICT,
    SAME_BYTES,
    SAME_PIXELS,
    Candidate,
    Pair,
    audit,
    connected,
    find_duplicates,
)
from shards.console import RunFailed

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


def near(key: str, bits: int, label: str = "x") -> Candidate:
    """An image of its own pixels; the hash has that many of its lowest bits set."""
    return Candidate(key, (label,), key, key, f"{(1 << bits) - 1:064x}")


def test_near_duplicates_are_reported_dropped_or_not_looked_for():
    images = [near("b", 0), near("a", 20), near("c", 60), near("d", 81)]
    reported = audit(images, "drop", "report")
    assert reported.pairs == (Pair("a", "b", NEAR, 20),)
    assert not reported.dropped
    dropped = audit(images, "drop", "drop")
    assert {key: d.duplicate_of for key, d in dropped.dropped.items()} == {"b": "a"}
    assert audit(images, "drop", "keep").pairs == ()


def test_near_duplicates_of_other_labels_all_go():
    dropped = audit([near("a", 0), near("b", 5, "y")], "drop", "drop").dropped
    assert {d.reason for d in dropped.values()} == {NEAR_CONFLICT}
    assert dropped.keys() == {"a", "b"}


def test_images_without_a_hash_are_near_to_nothing():
    images = [Candidate("a", (), "1", "1"), Candidate("b", (), "2", "2")]
    assert audit(images, "drop", "drop").pairs == ()


def test_duplicates_can_be_kept_or_fail():
    images = [Candidate("a", ("x",), "1", "p"), Candidate("b", ("x",), "1", "p"), near("c", 9)]
    assert audit(images, "keep", "report").pairs == (Pair("a", "b", SAME_BYTES),)
    assert not audit(images, "keep", "report").dropped
    with pytest.raises(RunFailed, match="1 duplicates, such as b of a; --on-duplicate drop"):
        audit(images, "fail", "report")
    audit(images[1:], "fail", "report")


def test_kept_duplicates_are_no_near_duplicates_too():
    images = [near("a", 0), near("b", 3)]
    copies = [Candidate(k, ("x",), k, "a", images[0].near_hash) for k in ("e", "f")]
    reasons = [p.reason for p in audit([*images, *copies], "keep", "report").pairs]
    assert sorted(reasons) == sorted([NEAR, SAME_PIXELS, SAME_PIXELS])


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")), max_size=12))
def test_connected_groups(pairs):
    groups = connected(pairs)
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names)) == len({name for pair in pairs for name in pair})
    where = {name: i for i, group in enumerate(groups) for name in group}
    assert all(where[one] == where[other] for one, other in pairs)
    # Nothing hangs together without a reason: a group of n names has at least n - 1 pairs.
    distinct = {tuple(sorted(p)) for p in pairs if p[0] != p[1]}
    assert sum(len(g) - 1 for g in groups) <= len(distinct)
