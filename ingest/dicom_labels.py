"""The label table of a DICOM set: a CSV with the columns id, labels and, where wanted, split.

An id is a SOPInstanceUID or a path, so no message quotes a cell: it names the line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ingest.cells import MAX_LABELS, exclude_each_other, labels_of, vocabulary_names
from shards.console import UserError, warn
from shards.csv_table import read_rows
from shards.labels import Vocabulary
from shards.splits import SPLITS, read_as, splits_of


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A row; id: of the image it is for."""

    line: int
    id: str = field(repr=False)
    labels: tuple[str, ...]
    split: str | None


def read_labels(path: Path, given: Sequence[str] = ()) -> list[LabelRow]:
    """The rows. given: labels that are none otherwise, see `labels_of`. UserError for a missing
    file or column, an empty or repeated id, a wrong split."""
    found: list[LabelRow] = []
    lines: dict[str, int] = {}
    rows = read_rows(path, ("id", "labels"), ("split",), verbatim=("labels",), show_header=False)
    for line, cells in rows:
        row = _row(path, line, cells, given)
        if lines.setdefault(row.id, line) != line:
            raise UserError(
                f"{path} lines {lines[row.id]} and {line} are for the same id; keep one"
            )
        found.append(row)
    if not found:
        raise UserError(f"{path} has no rows; expected one per image")
    return _with_splits(found, path)


def _with_splits(rows: Sequence[LabelRow], path: Path) -> list[LabelRow]:
    """The rows with the splits that their own spellings mean."""
    named = dict.fromkeys(row.split for row in rows if row.split is not None)
    splits = splits_of(named, path)
    if not named:
        return list(rows)
    for row in rows:
        if row.split not in splits:
            raise UserError(
                f"{path} line {row.line} has {'another' if row.split else 'no'} split; allowed: "
                f"{', '.join(SPLITS)}"
            )
    for note in read_as(splits):
        warn(f"{path}: {note}")
    return [replace(row, split=splits[row.split]) for row in rows if row.split is not None]


def _row(path: Path, line: int, cells: Mapping[str, str], given: Sequence[str]) -> LabelRow:
    name = cells["id"].removeprefix("./")
    if not name:
        raise UserError(f"{path} line {line} has no id: a SOPInstanceUID, or a path below --src")
    return LabelRow(line, name, labels_of(cells["labels"], given), cells["split"] or None)


def as_windows_1252(name: str) -> str:
    """A file's name as a table in Windows-1252 has it, where the file system's is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return name


def make_vocabulary(rows: Sequence[LabelRow], given: Sequence[str], path: Path) -> Vocabulary:
    """The labels as given, else those of the table, sorted; they exclude each other when every
    row has exactly one. UserError when a row has a label that is not among those given."""
    labels = [row.labels for row in rows]
    names = vocabulary_names(labels, given, path, "labels")
    if not 1 <= len(names) <= MAX_LABELS or len(set(names)) < len(names):
        raise UserError(
            f"{len(names)} labels, or one twice; allowed: 1 to {MAX_LABELS} different ones; is "
            f"the right column of {path} called labels?"
        )
    for row in rows:
        if not set(row.labels) <= set(names):
            raise UserError(
                f"{path} line {row.line} has a label that --labels lacks; it has: "
                f"{', '.join(names)}"
            )
    return Vocabulary(names, exclude_each_other(labels, path) and len(names) > 1)


class LabelTable:
    """The rows by id, and which of them were used."""

    def __init__(self, rows: Sequence[LabelRow], path: Path) -> None:
        self.by_id, self.path = {row.id: row for row in rows}, path
        self.used: set[str] = set()

    def row(self, name: str, sop_instance: str) -> LabelRow | None:
        """The row of a file, by its path or by its UID. UserError when two rows contradict."""
        ids = (as_windows_1252(name), sop_instance)
        found = [self.by_id[i] for i in ids if i and i in self.by_id]
        self.used.update(row.id for row in found)
        if len({(row.labels, row.split) for row in found}) > 1:
            lines = " and ".join(str(line) for line in sorted(row.line for row in found))
            raise UserError(f"{self.path} lines {lines} are for one file and differ; keep one")
        return found[0] if found else None

    def unused(self) -> list[LabelRow]:
        return [row for row in self.by_id.values() if row.id not in self.used]
