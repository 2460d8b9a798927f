"""Which images of a data set are used, and how they are split: the same options for every source.

`select(source, config)` -> the source as its user wants it. The order: what the source itself
leaves out; views, modalities and a list; then the split (given lists, else the source's own where
it brings one, else by patient), in which no patient stands twice.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ingest.given_split import keep_patients_apart, readmit, val_from_train
from ingest.lists import apply_exclusions, apply_split_lists, split_lists
from ingest.record import Missing, Record, Source, SourceImage
from ingest.split import TRAIN_VAL, SplitConfig, check_counts, check_fractions
from shards.codec import Encoding
from shards.console import UserError

UNKNOWN = "unknown"  # in place of a view or modality: images that do not say theirs
_REST = (0.8, 0.2, 0.0)  # what stays beside --test-per-class, as Bassi & Attux divide it


@dataclass(frozen=True)
class SelectionConfig:
    """What of the data set is used, and how it is split."""

    exclude: Path | None = None
    """Text file of images to leave out, one a line: a file as in lists/*.txt, or a key."""
    exclude_view: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out images of this view, such as L, AP or unknown (not said)."""
    exclude_modality: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Leave out images of this modality, such as CT, CR or unknown (not said)."""
    train_list: Path | None = None
    """Text file of the images for training, one a line as in lists/train.txt; needs --test-list or
    --val-list. Replaces the data set's own split; what is in no list is left out."""
    val_list: Path | None = None
    """The same for validation. Without it, a share of the training patients is set apart."""
    test_list: Path | None = None
    """The same for testing."""
    random_split: bool = False
    """Split patients by --seed even where the data set brings official lists, folders or a column
    for the split."""
    fractions: tuple[float, float, float] | None = None
    """Shares of train, val and test; where test is given, the first two divide the rest.
    Default: those of the data set, else 0.7 0.1 0.2."""
    test_per_class: int | None = None
    """Exactly so many test images of each class, patients whole; the rest is divided 80/20, or as
    --fractions says."""
    cap_per_class: int | None = None
    """Use no more than this many images of each class, chosen by --seed. Default: all."""

    def lists(self) -> dict[str, Path]:
        """Split -> list. UserError for options that contradict each other."""
        check_counts(self.test_per_class, self.cap_per_class, None)
        if self.fractions:
            check_fractions(self.fractions)
        lists = split_lists(self.train_list, self.val_list, self.test_list)
        if lists and (self.random_split or self.test_per_class):
            other = "--random-split" if self.random_split else "--test-per-class"
            raise UserError(f"{other} and --train-list exclude each other; drop one")
        return lists


def select(source: Source, config: SelectionConfig) -> Source:
    """The source with these options. UserError for options that contradict each other."""
    lists = config.lists()
    return Selected(source, config, lists) if config != SelectionConfig() else source


class Selected(Source):
    """A Source of some of another's images, with another split."""

    def __init__(self, source: Source, config: SelectionConfig, lists: dict[str, Path]) -> None:
        self.source, self.config, self.lists = source, config, lists
        self.name, self.vocabulary = source.name, source.vocabulary
        self.synthetic, self.private = source.synthetic, source.private
        self.notes = source.notes
        self.split = new_split(source.split, config)

    def records(self) -> list[Record]:
        """UserError for a view or modality that no image has, for a list that names no image, and
        for an option that would do nothing."""
        return self._selected(self.source.records())

    def records_before(self, quarantined: Mapping[str, str]) -> list[Record]:
        return self._selected(self.source.records_before(quarantined))

    def _selected(self, records: Sequence[Record]) -> list[Record]:
        config = self.config
        anew = bool(self.lists) or config.random_split
        records = readmit(records, anew=anew)
        records = leave_out(records, config.exclude_view, "view", lambda r: r.view)
        records = leave_out(records, config.exclude_modality, "modality", lambda r: r.modality)
        if config.exclude:
            records = apply_exclusions(records, config.exclude, self.source.named)
        if self.lists:
            records = apply_split_lists(records, self.lists, self.source.named)
        elif not anew:
            records = val_from_train(records)
        records = keep_patients_apart(records)
        _refuse_idle(records, config, self.name)
        return records

    def inventory(self) -> list[tuple[str, int]]:
        return self.source.inventory()

    def surely_missing(self, records: Sequence[Record]) -> Missing | None:
        return self.source.surely_missing(records)

    def unlisted(self, records: Sequence[Record]) -> str | None:
        return self.source.unlisted(records)

    def images(self) -> Iterator[SourceImage]:
        yield from self.source.images()
        self.notes = self.source.notes  # which may tell of archives that were read to their ends

    def paths(self) -> tuple[Path, ...]:
        return self.source.paths()

    def named(self, line: str) -> tuple[str, ...]:
        return self.source.named(line)

    def check(self, out: Path, encoding: Encoding) -> None:
        self.source.check(out, encoding)


def new_split(old: SplitConfig, config: SelectionConfig) -> SplitConfig:
    """The data set's split with what the options change."""
    split = old
    if config.random_split and not old.fractions[2] and old.test_per_class is None:
        split = SplitConfig()  # the old one only divides what stands beside a given test set
    if config.test_per_class is not None:
        split = replace(split, fractions=_REST, test_per_class=config.test_per_class)
    elif config.fractions:
        split = replace(split, test_per_class=None)
    if config.fractions:
        split = replace(split, fractions=config.fractions)
    return replace(split, cap_per_class=config.cap_per_class or split.cap_per_class)


def leave_out(
    records: Sequence[Record],
    values: Sequence[str],
    what: str,
    value_of: Callable[[Record], str | None],
) -> list[Record]:
    """The records with those of these views or modalities excluded, in whatever case they are
    written. UserError for one that no image has."""
    there = Counter(value_of(r) or UNKNOWN for r in records)
    unwanted = {value.casefold() for value in values}
    strange = unwanted - {found.casefold() for found in there}
    for value in (value for value in values if value.casefold() in strange):
        known = ", ".join(f"{found} ({count})" for found, count in there.most_common(12))
        raise UserError(f"--exclude-{what} {value}: no image has it; there are: {known}")
    return [_without(r, value_of(r) or UNKNOWN, unwanted, what) for r in records]


def _without(record: Record, value: str, unwanted: set[str], what: str) -> Record:
    if record.excluded or value.casefold() not in unwanted:
        return record
    return replace(record, excluded=f"{what} {value}, as asked for")


def _refuse_idle(records: Sequence[Record], config: SelectionConfig, name: str) -> None:
    """UserError for an option that the given split leaves nothing to do."""
    splits = {r.split for r in records if not r.excluded}
    if config.test_per_class is not None and splits - {None}:
        option = f"--test-per-class {config.test_per_class}"
    elif config.fractions and not splits & {None, TRAIN_VAL}:
        option = "--fractions"
    else:
        return
    raise UserError(
        f"{option} changes nothing: {name} brings its own split, or lists give it; add "
        "--random-split to split all images anew, or drop the option"
    )
