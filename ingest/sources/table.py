"""Anybody's own images with a CSV table: a row per image, its path relative to SRC, its labels
joined by `|`, and columns for patient, split and view where there are some -> labels.

Run: python -m ingest csv --src PATH --table FILE --name NAME --out DIR
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from ingest.cells import (
    exclude_each_other,
    labels_of,
    patients_of,
    refuse_repeats,
    vocabulary_names,
)
from ingest.file_source import NOT_IN_TABLE, FileSource, check_name, present, require_folder
from ingest.given_split import GIVEN_SPLIT, keep_patients_apart, val_from_train
from ingest.record import Record
from ingest.split import SplitConfig
from shards.console import UserError
from shards.csv_table import Row, read_rows
from shards.labels import Vocabulary
from shards.sample import make_key
from shards.splits import SPLITS, read_as, splits_of

NAME = "csv"


@dataclass(frozen=True)
class TableConfig:
    """Your own images with a CSV table, one row per image: its path relative to SRC, its labels
    joined by |, and columns for patient, split and view where you have them. The labels exclude
    each other when every row has exactly one; a row may have none. Give the patients, if several
    images are of one: without them, they may come to stand in different splits. Paths and patients
    stand in the shards as they are: give numbers or hashes, no names of people."""

    src: Path
    """Folder that the table's paths start from."""
    table: Path
    """The CSV file, with a header."""
    name: str = NAME
    """Name of the data set: of its folder in OUT and of its shards."""
    labels: tuple[str, ...] = ()
    """The labels, in the order of the outputs. Default: those in the table, sorted. A word for
    missing, such as NA or None, is a label only where it is given here."""
    path_column: str = "path"
    """Column with the images' paths."""
    labels_column: str = "labels"
    """Column with the labels."""
    patient_column: str | None = None
    """Column with the patients. A patient whom the table puts into several splits counts for test,
    else val; the other images are left out."""
    split_column: str | None = None
    """Column with train, val, test, or train_val, which is divided 90/10, as train is where no row
    says val; Training, valid, dev and the like mean the same. Default: patients are split
    70/10/20."""
    view_column: str | None = None
    """Column with the views, such as PA."""
    modality_column: str | None = None
    """Column with the modalities, such as DX."""


class Table(FileSource):
    """The Source built from a TableConfig."""

    unlisted_are = NOT_IN_TABLE

    def __init__(self, config: TableConfig) -> None:
        """UserError for a table that is missing or wrong, or when none of its images is there."""
        require_folder(config.src, "the folder that the table's paths start from")
        self.name, self.table = check_name(config.name), config.table
        self.split = GIVEN_SPLIT if config.split_column else SplitConfig()
        columns = (config.path_column, config.labels_column)
        others = (
            config.patient_column,
            config.split_column,
            config.view_column,
            config.modality_column,
        )
        required = [*columns, *(column for column in others if column is not None)]
        rows = list(read_rows(config.table, required, verbatim=[config.labels_column]))
        splits = splits_of(dict.fromkeys(_column(rows, config.split_column)), config.table)
        patients = patients_of(_column(rows, config.patient_column), config.table)
        self.rows = [
            _record(self.name, config, splits, row, patient)
            for row, patient in zip_longest(rows, patients)
        ]
        refuse_repeats((r.location for r in self.rows), config.table)
        self.vocabulary = _vocabulary(self.rows, config)
        paths = {r.location: config.src / r.location for r in self.rows}
        super().__init__(config.src, present(paths))
        self.notes = read_as(splits)
        if not self.files:
            raise UserError(
                f"none of the {len(paths)} images of {config.table} is in {config.src}, such as "
                f"{next(iter(paths))}; --src names the folder that the paths start from"
            )

    def paths(self) -> tuple[Path, ...]:
        return (self.src, self.table)

    def records(self) -> list[Record]:
        return val_from_train(keep_patients_apart(self.rows))


def _column(rows: Sequence[Row], column: str | None) -> list[str]:
    return [cells[column] for _, cells in rows] if column else []


def _record(
    name: str, config: TableConfig, splits: Mapping[str, str], row: Row, patient: str | None
) -> Record:
    line, cells = row
    where = f"{config.table} line {line}"
    location = _location(cells[config.path_column], where)

    def cell(column: str | None) -> str | None:
        return (cells[column] or None) if column else None

    split = cells[config.split_column] if config.split_column else None
    if split is not None and split not in splits:
        raise UserError(f"{where} has the split {split!r}; allowed: {', '.join(SPLITS)}")
    return Record(
        location=location,
        key=make_key(location),
        labels=labels_of(cells[config.labels_column], config.labels),
        patient=f"{name}:{patient}" if patient else None,
        view=cell(config.view_column),
        modality=cell(config.modality_column),
        split=None if split is None else splits[split],
    )


def _location(text: str, where: str) -> str:
    """The path of a row, made plain. UserError when it is empty or leads out of the folder."""
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where} has the path {text!r}; allowed: paths inside --src, without '..'")
    return path.as_posix()


def _vocabulary(records: Sequence[Record], config: TableConfig) -> Vocabulary:
    """The labels as given, or sorted; exclusive when every row has exactly one."""
    labels = [record.labels for record in records]
    names = vocabulary_names(labels, config.labels, config.table, config.labels_column)
    strange = sorted({label for several in labels for label in several}.difference(names))
    if strange or len(set(names)) < len(names):
        wrong = f"lacks {strange[0]!r} of {config.table}" if strange else "names a label twice"
        raise UserError(f"--labels {' '.join(names)} {wrong}; it must name each label once")
    exclusive = exclude_each_other(labels, config.table)
    if not names or (exclusive and len(names) < 2):
        raise UserError(
            f"{config.table} has no two labels in {config.labels_column!r}; found: "
            f"{', '.join(names) or 'none'}; --labels-column names the column"
        )
    return Vocabulary(names, exclusive)
