"""Which images of a data set stay, in which split, and why the others go: decisions, no I/O."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ingest.audit import Audit, Candidate, OnDuplicate, OnNear, Pair, audit, connected
from ingest.near import THRESHOLD
from ingest.record import PASSED_OVER, Record
from ingest.split import (
    TEST,
    SplitConfig,
    assign_splits,
    join_patients,
    over_cap,
    patient_of,
    shared_patients,
)
from ingest.spool import Entry

OVER_CAP = "over the cap per class"
# How those notes begin that the samples alone do not tell; in a merged set, behind `<data set>: `.
MISSING_NOTE, COVERED_NOTE = "missing: ", "parts of "
_SETS = "(?:[A-Za-z0-9_-]+: )*"
_LASTING = re.compile(f"{_SETS}(?:{MISSING_NOTE}|{COVERED_NOTE})")
_EXACT = re.compile(f"({_SETS}{COVERED_NOTE})(?!at most )")


@dataclass(frozen=True, slots=True)
class Found:
    """A usable image: what is known of it, its encoded form, and the data set it came from."""

    record: Record
    entry: Entry
    source: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A usable image that goes into a shard of this split."""

    record: Record
    entry: Entry
    source: str
    split: str


@dataclass(frozen=True, slots=True)
class Excluded:
    """A record that does not, and why; duplicate_of: the key of the image it repeats."""

    record: Record
    reason: str
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of duplicates, of near duplicates, and of images beyond the cap."""

    on_duplicate: OnDuplicate = "drop"
    near_duplicate: OnNear = "report"


@dataclass(frozen=True)
class Choice:
    """found: the images given; kept: those that stay, in their order; excluded: those that go;
    pairs: all duplicates and near duplicates among them; near_sought: near ones were looked for."""

    found: Sequence[Found]
    kept: Sequence[Kept]
    excluded: Sequence[Excluded]
    pairs: Sequence[Pair]
    near_sought: bool = True

    @property
    def splits(self) -> dict[str, str]:
        """key -> split of what stays."""
        return {k.record.key: k.split for k in self.kept}

    @property
    def across(self) -> list[Pair]:
        """The pairs that stay, one image in one split and one in another."""
        splits = self.splits
        stay = (p for p in self.pairs if p.first in splits and p.second in splits)
        return [p for p in stay if splits[p.first] != splits[p.second]]

    @property
    def unknown_patients(self) -> int:
        """Images that stay and whose patient is not known: nobody can tell whether such a patient
        is in more than one split."""
        return sum(k.record.patient is None for k in self.kept)


def choose(
    found: Sequence[Found],
    split: SplitConfig,
    seed: int,
    policy: Policy,
    *,
    keep_test: bool = False,
) -> Choice:
    """Audit, cap and split. The patients of an image and of its duplicate or near duplicate are
    one patient to the split, so a copy under another name leaks nothing. keep_test: the cap is for
    the images that do not stand in the test set already."""
    records = [f.record for f in found]
    result = audit([candidate(f) for f in found], policy.on_duplicate, policy.near_duplicate)
    excluded = [
        Excluded(r, result.dropped[r.key].reason, result.dropped[r.key].duplicate_of)
        for r in records
        if r.key in result.dropped
    ]
    single = [r for r in records if r.key not in result.dropped]
    tested = [r for r in single if keep_test and r.split == TEST]
    fixed = {r.key for r in tested}
    within = [*tested, *capped([r for r in single if r.key not in fixed], split, seed)]
    inside = {r.key for r in within}
    excluded += [Excluded(r, OVER_CAP) for r in single if r.key not in inside]
    splits = assign_splits(join_patients(within, _same_patients(records, result)), split, seed)
    kept = [
        Kept(f.record, f.entry, f.source, splits[f.record.key])
        for f in found
        if f.record.key in inside
    ]
    return Choice(found, kept, excluded, result.pairs, policy.near_duplicate != "keep")


def capped(records: Sequence[Record], split: SplitConfig, seed: int) -> list[Record]:
    """The records without those beyond the cap per class."""
    cap = split.cap_per_class
    over = over_cap(records, cap, seed) if cap is not None else set()
    return [r for r in records if r.key not in over]


def notes(choice: Choice) -> tuple[str, ...]:
    """What a user of the data set should know, in words; the manifest keeps them."""
    records, splits = [k.record for k in choice.kept], choice.splits
    said = []
    if choice.unknown_patients:
        said.append(_unknown_patients(choice))
    stay = [p for p in choice.pairs if p.first in splits and p.second in splits]
    for kind, pairs in (
        ("duplicates", [p for p in stay if p.reason.startswith("duplicate")]),
        (f"near duplicates (at most {THRESHOLD} of 256 bits)", _near(stay)),
    ):
        across = sum(splits[p.first] != splits[p.second] for p in pairs)
        if pairs:
            count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} of {kind}"
            said.append(f"{count} stay, {across} of them across splits")
    shared = shared_patients(records, splits)
    if shared:
        said.append(f"{len(shared)} patients have images in more than one split (given lists)")
    return tuple(said)


def _unknown_patients(choice: Choice) -> str:
    said = f"the patient is unknown for {choice.unknown_patients} of {len(choice.kept)} images"
    if len(set(choice.splits.values())) < 2:
        return said
    near = "near duplicates were not looked for"
    if choice.near_sought:
        near = f"near duplicates are the only evidence: {len(_near(choice.across))} across splits"
    return f"{said}: whether one is in two splits cannot be checked, {near}"


def lasting(said: Sequence[str]) -> tuple[str, ...]:
    """Those of a data set's notes that stay with it, whatever becomes of its samples."""
    return tuple(note for note in said if _LASTING.match(note) or note.endswith(PASSED_OVER))


def at_most(said: Sequence[str]) -> list[str]:
    """The notes, where images may have been left out that the counts of covered ones include."""
    exact = [_EXACT.match(note) for note in said]
    return [f"{m[1]}at most {n[m.end() :]}" if m else n for m, n in zip(exact, said)]


def handed_on(dataset: str, said: Sequence[str]) -> list[str]:
    """The lasting notes of a data set for those of one that it becomes part of."""
    return [f"{dataset}: {note}" for note in at_most(lasting(said))]


def leaks(choice: Choice) -> int:
    """Patients, and pairs of copies, with images in more than one split: both counted together."""
    shared = shared_patients([k.record for k in choice.kept], choice.splits)
    return len(choice.across) + len(shared)


def _near(pairs: Sequence[Pair]) -> list[Pair]:
    return [p for p in pairs if p.reason.startswith("near")]


def candidate(found: Found | Kept) -> Candidate:
    """The image as the audit sees it."""
    record, entry = found.record, found.entry
    return Candidate(record.key, record.labels, entry.sha256, entry.pixel_sha256, entry.near_hash)


def _same_patients(records: Sequence[Record], result: Audit) -> list[list[str]]:
    names = {r.key: patient_of(r) for r in records}
    return connected((names[p.first], names[p.second]) for p in result.pairs)
