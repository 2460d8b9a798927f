"""Splits that a data set brings along, made usable: pure functions of its records."""

from collections.abc import Sequence
from dataclasses import replace

from ingest.lists import NOT_LISTED
from ingest.record import Record
from ingest.split import TEST, TRAIN, TRAIN_VAL, VAL, SplitConfig

# The share of the training images that is set apart where nothing is given for validation.
GIVEN_SPLIT = SplitConfig((0.9, 0.1, 0.0))
_KEEPING = (TEST, VAL, TRAIN, TRAIN_VAL)
_ALSO_IN = "patient also in "


def val_from_train(records: Sequence[Record]) -> list[Record]:
    """Where nothing is given for validation, training images become `train_val`, which the run
    divides by GIVEN_SPLIT, patients whole."""
    if any(r.split == VAL and not r.excluded for r in records):
        return list(records)
    return [replace(r, split=TRAIN_VAL) if r.split == TRAIN else r for r in records]


def keep_patients_apart(records: Sequence[Record]) -> list[Record]:
    """A patient in several splits stays in the test set, else in validation, and the other images
    of the patient are excluded: so the published test set stays whole and nothing leaks into it."""
    usable = [r for r in records if r.patient and r.split and not r.excluded]
    home: dict[str | None, str | None] = {}
    for split in _KEEPING:
        for record in usable:
            if record.split == split:
                home.setdefault(record.patient, split)
    return [_at_home(record, home.get(record.patient, record.split)) for record in records]


def _at_home(record: Record, home: str | None) -> Record:
    if record.split == home or record.excluded:
        return record
    return replace(record, excluded=f"{_ALSO_IN}{home}")


def readmit(records: Sequence[Record], *, anew: bool) -> list[Record]:
    """The records with those back that `keep_patients_apart` left out, as what they had to make
    way for may be left out itself. anew: and without their splits, with those in no list back."""
    found = []
    for record in records:
        reason = record.excluded or ""
        back = reason.startswith(_ALSO_IN) or (anew and reason == NOT_LISTED)
        excluded = None if back else record.excluded
        found.append(replace(record, excluded=excluded, split=None if anew else record.split))
    return found
