"""Which sample goes to which split: a pure function of the records and the seed.

Reproducible (ranks come from hashes, not from an order or a generator), stratified by class, and no
patient in two splits. Samples without a known patient count as a patient each.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ingest.per_class import exact, first_fit, reach
from shards.console import UserError
from shards.splits import TEST, TRAIN, TRAIN_VAL, VAL

if TYPE_CHECKING:
    from ingest.record import Record


@dataclass(frozen=True)
class SplitConfig:
    """fractions: of train, val and test; test_per_class: the test set is that many images of each
    class, and the fractions of train and val share the rest; cap_per_class: use no more of each."""

    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    test_per_class: int | None = None
    cap_per_class: int | None = None


def check_fractions(fractions: Sequence[float]) -> None:
    """UserError when they are no shares of train, val and test."""
    shares = all(fraction >= 0 for fraction in fractions)  # which NaN is not
    if not (shares and abs(sum(fractions) - 1) <= 1e-6 and fractions[0]):
        raise UserError(
            f"--fractions {' '.join(map(str, fractions))}; allowed: the shares of train, val and "
            "test, which add up to 1, the first above 0"
        )


def check_counts(test_per_class: int | None, cap: int | None, shard_mb: int | None) -> None:
    """UserError for a number below 1."""
    options = {"--test-per-class": test_per_class, "--cap-per-class": cap, "--shard-mb": shard_mb}
    for option, number in options.items():
        if number is not None and number < 1:
            raise UserError(f"{option} {number}; at least 1 is needed")


def rank(seed: int, purpose: str, name: str) -> int:
    """A number that depends on nothing but its address: sorting by it shuffles."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:16], "big")


def over_cap(records: Iterable["Record"], cap: int, seed: int) -> set[str]:
    """Keys of the samples beyond `cap` per class, by hash rank."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for label in record.labels:
            by_class[label].append(record.key)
    ranked = (sorted(keys, key=lambda key: rank(seed, "cap", key)) for keys in by_class.values())
    return {key for keys in ranked for key in keys[cap:]}


def assign_splits(records: Sequence["Record"], config: SplitConfig, seed: int) -> dict[str, str]:
    """key -> `train`, `val` or `test`; splits that the records already carry stay as they are.

    UserError when a class is too small for `test_per_class`.
    """
    given = {r.key: r.split for r in records if r.split not in (None, TRAIN_VAL)}
    undivided = [r for r in records if r.split == TRAIN_VAL]
    free = [r for r in records if r.split is None]
    train, val, test = config.fractions
    splits = {key: split for key, split in given.items() if split is not None}
    splits |= by_fraction(undivided, {TRAIN: train, VAL: val}, seed)
    if config.test_per_class is not None:
        tested = take_per_class(free, config.test_per_class, seed)
        splits |= dict.fromkeys(tested, TEST)
        free = [r for r in free if r.key not in tested]
        return splits | by_fraction(free, {TRAIN: train, VAL: val}, seed)
    return splits | by_fraction(free, {TRAIN: train, VAL: val, TEST: test}, seed)


def by_fraction(
    records: Sequence["Record"], fractions: Mapping[str, float], seed: int
) -> dict[str, str]:
    """key -> split, so that each class is shared out in proportion; patients stay whole."""
    splits: dict[str, str] = {}
    # Each patient goes to the split that lags furthest behind its share. The lags go on from class
    # to class, else fifteen classes would round fifteen times in favour of the same split.
    lag = dict.fromkeys(fractions, 0.0)
    for groups in _strata(records, seed).values():
        for group in groups:
            for split, fraction in fractions.items():
                lag[split] += len(group) * fraction / sum(fractions.values())
            behind = max(lag, key=lag.__getitem__)
            lag[behind] -= len(group)
            splits |= dict.fromkeys(group, behind)
    return splits


def take_per_class(records: Sequence["Record"], count: int, seed: int) -> set[str]:
    """Keys of exactly `count` samples of each class, patients whole. A class is a label, and what
    patients without any label have. UserError when no such choice is there or found."""
    strata = _strata(records, seed)
    labels = {r.key: r.labels or ("",) for r in records}
    sizes = Counter(label for several in labels.values() for label in several)
    classes = sorted((c for c in sizes if c or c in strata), key=lambda c: (sizes[c], c))
    for label in classes:
        if sizes[label] <= count:
            raise UserError(
                f"class {label!r} has {sizes[label]} usable images, and {count} per class for the "
                "test set leave too few; allowed: fewer than the smallest class; set "
                "--test-per-class"
            )
    groups = [group for label in classes for group in strata.get(label, [])]  # rare ones first
    patients = [Counter(label for key in group for label in labels[key]) for group in groups]
    taken = first_fit(patients, classes, count)
    reached = reach(patients, taken)
    if any(reached[label] != count for label in classes):
        taken = exact(patients, classes, count) or _refuse_inexact(reached, classes, count)
    return {key for place in taken for key in groups[place]}


def _refuse_inexact(reached: Counter[str], classes: Sequence[str], count: int) -> list[int]:
    counts = ", ".join(f"{label!r} {reached[label]}" for label in classes)
    raise UserError(
        f"no choice of whole patients has exactly {count} test images of each class; reached: "
        f"{counts}; set another --test-per-class, or share by --fractions"
    )


def _strata(records: Sequence["Record"], seed: int) -> dict[str, list[list[str]]]:
    """Class -> the keys of each patient, in hash order. A patient of several classes counts for
    the rarest of them, so that rare classes are shared out evenly."""
    counts = Counter(label for record in records for label in record.labels)
    patients: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        patients[patient_of(record)].append(record)
    strata: dict[str, list[list[str]]] = defaultdict(list)
    for patient in sorted(patients, key=lambda name: rank(seed, "split", name)):
        group = patients[patient]
        labels = {label for record in group for label in record.labels}
        rarest = min(labels, key=lambda label: (counts[label], label), default="")
        strata[rarest].append(sorted(record.key for record in group))
    return dict(sorted(strata.items()))


def patient_of(record: "Record") -> str:
    """The patient; a sample of an unknown one counts as a patient of its own."""
    return record.patient or f"sample {record.key}"


def join_patients(records: Iterable["Record"], names: Iterable[Sequence[str]]) -> "list[Record]":
    """The records with one name for the patients of each group in `names` (of `patient_of`)."""
    joint = {name: group[0] for group in names for name in group}
    joined = ((record, joint.get(patient_of(record))) for record in records)
    return [r if name is None else replace(r, patient=name) for r, name in joined]


def shared_patients(records: Iterable["Record"], splits: Mapping[str, str]) -> set[str]:
    """Patients with samples in more than one split: only lists given from outside cause them."""
    first: dict[str, str] = {}
    shared = set()
    for record in records:
        split = splits.get(record.key)
        if split and record.patient and first.setdefault(record.patient, split) != split:
            shared.add(record.patient)
    return shared
