"""ingest.given_split: no patient in two splits, the test set whole, something to validate on."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ingest.given_split import GIVEN_SPLIT, keep_patients_apart, readmit, val_from_train
from ingest.lists import NOT_LISTED
from ingest.record import Record
from ingest.split import TEST, TRAIN, TRAIN_VAL, VAL, assign_splits, shared_patients


def record(number: int, patient: str | None, split: str) -> Record:
    return Record(f"{number}.png", f"k{number}", ("a",), patient=patient, split=split)


ROWS = st.lists(
    st.tuples(st.sampled_from([None, "p1", "p2", "p3"]), st.sampled_from([TRAIN, VAL, TEST])),
    max_size=12,
)


@given(ROWS)
def test_patients_end_up_in_one_split(rows: list[tuple[str | None, str]]):
    records = [record(n, *row) for n, row in enumerate(rows)]
    apart = val_from_train(keep_patients_apart(records))
    kept = [r for r in apart if not r.excluded]
    splits = assign_splits(kept, GIVEN_SPLIT, 0)
    assert not shared_patients(kept, splits)
    assert [r for r in kept if r.split == TEST] == [r for r in records if r.split == TEST]
    assert {r.location for r in kept if r.patient is None} == {
        r.location for r in records if r.patient is None
    }
    tested = {r.patient for r in records if r.split == TEST}
    for before, after in zip(records, apart):
        if after.excluded:
            home = TEST if before.patient in tested else VAL
            assert after.excluded == f"patient also in {home}"
            assert before.split != home


def test_a_tenth_of_train_where_nothing_is_given():
    records = [record(n, None, TRAIN) for n in range(40)]
    divided = val_from_train(records)
    assert {r.split for r in divided} == {TRAIN_VAL}
    assert list(assign_splits(divided, GIVEN_SPLIT, 0).values()).count(VAL) == 4
    assert val_from_train([*records, record(40, None, VAL)])[0].split == TRAIN


def test_what_made_way_for_another_split_is_readmitted_and_anew_what_no_list_named():
    reasons = ("patient also in test", NOT_LISTED, "duplicate of k7", None)
    records = [replace(record(n, "p", TRAIN), excluded=why) for n, why in enumerate(reasons)]
    for anew, excluded in (
        (False, [None, NOT_LISTED, "duplicate of k7", None]),
        (True, [None, None, "duplicate of k7", None]),
    ):
        found = readmit(records, anew=anew)
        assert [r.excluded for r in found] == excluded
        assert {r.split for r in found} == {None if anew else TRAIN}
        assert [r.key for r in found] == [r.key for r in records]
