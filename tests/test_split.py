"""ingest.split: disjoint patients, every sample once, reproducible, whatever the order."""

import math
import random
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.record import Record
from ingest.split import (
    SplitConfig,
    assign_splits,
    by_fraction,
    check_counts,
    check_fractions,
    join_patients,
    over_cap,
    rank,
    shared_patients,
    take_per_class,
)
from shards.console import UserError

LABELS = ("a", "b", "c")
THREE = {"train": 0.7, "val": 0.1, "test": 0.2}


@st.composite
def record_lists(draw):
    """Records with 0 to 3 labels, of few or unknown patients, some with a given split."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sets(st.sampled_from(LABELS)),
                st.one_of(st.none(), st.integers(0, 15)),
            ),
            max_size=60,
        )
    )
    return [
        Record(str(i), f"k{i}", tuple(sorted(labels)), None if p is None else f"set:{p}")
        for i, (labels, p) in enumerate(rows)
    ]


def one_class(counts: dict[str, int]) -> list[Record]:
    rows = [(label, i) for label, count in counts.items() for i in range(count)]
    return [Record(f"{label}{i}", f"{label}{i}", (label,)) for label, i in rows]


@given(record_lists(), st.integers(0, 5))
def test_fractions_cover_with_disjoint_patients(records, seed):
    splits = by_fraction(records, THREE, seed)
    assert splits.keys() == {r.key for r in records}
    assert not shared_patients(records, splits)


@given(record_lists(), st.integers(0, 5), st.randoms())
def test_the_order_of_records_does_not_matter(records, seed, rng: random.Random):
    shuffled = records.copy()
    rng.shuffle(shuffled)
    assert by_fraction(records, THREE, seed) == by_fraction(shuffled, THREE, seed)
    assert over_cap(records, 3, seed) == over_cap(shuffled, 3, seed)


@given(st.dictionaries(st.sampled_from(LABELS), st.integers(1, 200), min_size=1), st.integers(0, 9))
def test_each_class_is_shared_out_in_proportion(counts, seed):
    records = one_class(counts)
    splits = by_fraction(records, THREE, seed)
    found = Counter((r.labels[0], splits[r.key]) for r in records)
    for label, count in counts.items():
        for split, fraction in THREE.items():
            assert abs(found[label, split] - count * fraction) <= 2
    sizes = Counter(splits.values())
    for split, fraction in THREE.items():
        assert abs(sizes[split] - len(records) * fraction) <= 1.5


def test_seeds_differ():
    records = one_class({"a": 100})
    assert by_fraction(records, THREE, 0) != by_fraction(records, THREE, 1)


def test_splits_are_those_of_the_versions_before():
    """What is ingested again, or merged, must not move a patient from one side to the other."""
    records = one_class({"a": 7, "b": 4})
    splits = by_fraction(records, THREE, 0)
    names = {split: [key for key in splits if splits[key] == split] for split in THREE}
    assert names["val"] == ["a6"]
    assert names["test"] == ["a2", "b1"]
    assert over_cap(records, 3, 5) == {"a0", "a1", "a3", "a5", "b0"}
    assert rank(3, "split", "set:é") == 238165288119708235907648163349061610372


@given(st.integers(1, 29), st.integers(0, 9))
def test_the_test_set_has_exactly_that_many_of_each_class(count, seed):
    records = one_class({"a": 30, "b": 41, "c": 100})
    splits = assign_splits(records, SplitConfig((0.8, 0.2, 0.0), test_per_class=count), seed)
    found = Counter((r.labels[0], splits[r.key]) for r in records)
    for label, size in (("a", 30), ("b", 41), ("c", 100)):
        assert found[label, "test"] == count
        assert abs(found[label, "train"] - 0.8 * (size - count)) <= 2


def test_patients_stay_whole_in_the_test_set():
    records = [
        Record(f"{p}-{i}", f"{p}-{i}", ("a",), f"set:{p}")
        for p in range(40)
        for i in range(p % 4 + 1)
    ]
    taken = take_per_class(records, 20, 0)
    sizes: dict[str | None, set[bool]] = defaultdict(set)
    for record in records:
        sizes[record.patient].add(record.key in taken)
    assert len(taken) == 20
    assert all(len(sides) == 1 for sides in sizes.values())


@pytest.mark.parametrize("fractions", [(1, 0, 0), (0.8, 0.2, 0), (0.5, 0, 0.5), (0.7, 0.1, 0.2)])
def test_shares_of_no_validation_and_no_test_are_allowed(fractions):
    check_fractions(fractions)


@pytest.mark.parametrize(
    "fractions", [(0, 0.5, 0.5), (1.1, -0.1, 0), (0.7, 0.1, 0.1), (math.nan, 0.5, 0.5), (2, 0, 0)]
)
def test_what_are_no_shares_is_refused(fractions):
    with pytest.raises(UserError, match="allowed: the shares of train, val and test"):
        check_fractions(fractions)


def test_a_count_below_one_is_refused():
    check_counts(1, 1, 1)
    check_counts(None, None, None)
    for place, option in enumerate(("--test-per-class", "--cap-per-class", "--shard-mb")):
        counts = [5 if i == place else None for i in range(3)]
        check_counts(*counts)
        counts[place] = 0
        with pytest.raises(UserError, match=f"{option} 0; at least 1 is needed"):
            check_counts(*counts)


def test_a_class_too_small_for_the_test_set():
    with pytest.raises(UserError, match=r"'b' has 10 usable images.*--test-per-class"):
        take_per_class(one_class({"a": 50, "b": 10}), 10, 0)


def test_a_class_of_one_large_patient_cannot_be_cut():
    records = [Record(str(i), str(i), ("a",), "set:1") for i in range(10)]
    with pytest.raises(UserError, match=r"exactly 5 test images of each class; reached: 'a' 0;"):
        take_per_class(records, 5, 0)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.integers(1, 3)), min_size=60), st.integers())
def test_patients_of_one_class_are_taken_class_by_class_in_hash_order(patients, seed):
    """A saved split of such data stays what it is."""
    records = visits(*(label * images for label, images in patients))
    expected: set[str] = set()
    for label in sorted({label for label, _ in patients}):
        room = 8
        for p in sorted(range(len(patients)), key=lambda p: rank(seed, "split", f"set:{p}")):
            if patients[p][0] == label and patients[p][1] <= room:
                room -= patients[p][1]
                expected |= {r.key for r in records if r.patient == f"set:{p}"}
        if room or sum(n for name, n in patients if name == label) <= 8:
            return
    assert take_per_class(records, 8, seed) == expected


def visits(*patients: str) -> list[Record]:
    """A patient's images as letters: one class each, - for none."""
    return [
        Record(f"{p}-{i}", f"{p}-{i}", () if label == "-" else (label,), f"set:{p}")
        for p, labels in enumerate(patients)
        for i, label in enumerate(labels)
    ]


def in_test(records: list[Record], count: int, seed: int) -> Counter[str]:
    """Images of each class in the test set, whose patients are whole."""
    taken = take_per_class(records, count, seed)
    sides: dict[str | None, set[bool]] = defaultdict(set)
    for record in records:
        sides[record.patient].add(record.key in taken)
    assert all(len(side) == 1 for side in sides.values())
    return Counter(label for r in records if r.key in taken for label in r.labels)


@pytest.mark.parametrize("seed", range(5))
def test_patients_of_two_classes_fill_both(seed: int):
    normal_or_both = visits(*["N"] * 100, *["NC"] * 100)
    assert in_test(normal_or_both, 60, seed) == {"N": 60, "C": 60}


def test_an_exact_choice_is_found_where_the_first_fit_misses_it():
    """First fit takes the pair of the rare class that leaves no room for the other."""
    for seed in range(20):
        assert in_test(visits("abbb", "abb", "ab", "ab", "a"), 2, seed) == {"a": 2, "b": 2}
        assert in_test(visits("aaaa", "aaa", "aaa", "aa"), 6, seed)["a"] == 6


def test_what_was_reached_is_said():
    """Every image of the rare class brings two of the other."""
    with pytest.raises(UserError, match=r"reached: 'a' 5, 'b' 10; set another") as caught:
        take_per_class(visits(*["abb"] * 30), 10, 0)
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.text("abc-", min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_exact_or_refused_and_refused_only_where_there_is_no_choice(patients, count, seed):
    """Against all choices of patients, tried one by one."""
    records = visits(*patients)
    sizes = Counter(label for p in patients for label in p)
    if not any(set(p) == {"-"} for p in patients):
        del sizes["-"]  # images without a label are a class where whole patients have none
    sums = {tuple(0 for _ in sizes)}
    for p in patients:
        sums |= {tuple(s + p.count(name) for s, name in zip(found, sizes)) for found in sums}
    possible = tuple(count for _ in sizes) in sums and min(sizes.values(), default=count) > count
    try:
        found = in_test(records, count, seed)
    except UserError:
        assert not possible or not sizes
        return
    assert possible or not sizes
    assert all(found[name] == count for name in sizes if name != "-")


@given(record_lists(), st.integers(1, 6), st.integers(0, 3), st.randoms())
def test_several_labels_are_exact_or_refused(records, count, seed, rng: random.Random):
    shuffled = records.copy()
    rng.shuffle(shuffled)
    try:
        taken = take_per_class(records, count, seed)
    except UserError as error:
        with pytest.raises(UserError, match=re.escape(str(error))):
            take_per_class(shuffled, count, seed)
        return
    assert take_per_class(shuffled, count, seed) == taken
    found = Counter(label for r in records if r.key in taken for label in r.labels)
    assert set(found.values()) <= {count}
    assert found.keys() == {label for r in records for label in r.labels}


def test_given_splits_stay_and_train_val_is_divided():
    given_test = [Record(f"t{i}", f"t{i}", ("a",), f"set:t{i}", split="test") for i in range(25)]
    rest = [
        Record(f"r{i}", f"r{i}", ("a",), f"set:r{i // 2}", split="train_val") for i in range(800)
    ]
    splits = assign_splits(given_test + rest, SplitConfig(), 0)
    assert {splits[r.key] for r in given_test} == {"test"}
    sizes = Counter(splits[r.key] for r in rest)
    assert abs(sizes["val"] - 100) <= 2  # 12.5 %
    assert sizes["train"] + sizes["val"] == 800
    assert not shared_patients(rest, splits)


def test_cap_counts_each_class():
    records = one_class({"a": 30, "b": 5})
    over = over_cap(records, 10, 0)
    assert len(over) == 20
    assert all(key.startswith("a") for key in over)


def test_shared_patients_are_found():
    records = [Record(str(i), str(i), ("a",), "set:1") for i in range(2)]
    assert shared_patients(records, {"0": "train", "1": "test"}) == {"set:1"}
    assert not shared_patients(records, {"0": "train", "1": "train"})


def test_joined_patients_share_a_split():
    records = [Record(str(i), str(i), ("a",), f"set:{i}" if i % 2 else None) for i in range(200)]
    groups = [["sample 0", "set:1", "set:7"], ["sample 2", "sample 4"]]
    splits = by_fraction(join_patients(records, groups), THREE, 0)
    assert splits["0"] == splits["1"] == splits["7"]
    assert splits["2"] == splits["4"]
    assert join_patients(records, []) == records
