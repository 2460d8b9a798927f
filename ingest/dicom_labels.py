"""The label table of a DICOM set: a CSV with the columns id, labels and, where wanted, split.

An id is a SOPInstanceUID or a path, so no message quotes a cell: it names the line.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ingest.csv_rows import table_text
from shards.console import UserError, warn
from shards.labels import Vocabulary
from shards.splits import SPLITS, read_as, splits_of

MAX_LABELS = 500  # more are no labels: another column was taken for them


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A row; id: of the image it is for."""

    line: int
    id: str = field(repr=False)
    labels: tuple[str, ...]
    split: str | None


def read_labels(path: Path) -> list[LabelRow]:
    """The rows. UserError for a missing file or column, an empty or repeated id, a wrong split."""
    rows = csv.reader(io.StringIO(table_text(path), newline=""))
    found: list[LabelRow] = []
    lines: dict[str, int] = {}
    try:
        header = [cell.strip().lower() for cell in next(rows, [])]
        _check_header(path, header)
        for cells in rows:
            if any(cell.strip() for cell in cells):
                row = _row(path, header, cells, rows.line_num)
                if lines.setdefault(row.id, row.line) != row.line:
                    raise UserError(
                        f"{path} lines {lines[row.id]} and {row.line} are for the same id; keep one"
                    )
                found.append(row)
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num} is not CSV ({error})") from None
    if not found:
        raise UserError(f"{path} has no rows; expected one per image")
    return _with_splits(found, path)


def _with_splits(rows: Sequence[LabelRow], path: Path) -> list[LabelRow]:
    """The rows with the splits that their own spellings mean."""
    named = dict.fromkeys(row.split for row in rows if row.split is not None)
    splits = splits_of(named, path)
    for row in rows:
        if row.split not in (None, *splits):
            raise UserError(
                f"{path} line {row.line} has another split; allowed: {', '.join(SPLITS)}"
            )
    for note in read_as(splits):
        warn(f"{path}: {note}")
    return [row if row.split is None else replace(row, split=splits[row.split]) for row in rows]


def _check_header(path: Path, header: Sequence[str]) -> None:
    for column in ("id", "labels"):
        if header.count(column) != 1:
            raise UserError(
                f"{path} has {header.count(column) or 'no'} column {column!r} in its first line; "
                "expected: id,labels or id,labels,split"
            )


def _row(path: Path, header: Sequence[str], cells: Sequence[str], line: int) -> LabelRow:
    if len(cells) != len(header):
        raise UserError(f"{path} line {line} has {len(cells)} fields, expected {len(header)}")
    by_column = dict(zip(header, (cell.strip() for cell in cells)))
    split = by_column.get("split")
    name = by_column["id"].removeprefix("./")
    if not name:
        raise UserError(f"{path} line {line} has no id: a SOPInstanceUID, or a path below --src")
    labels = {label.strip() for label in by_column["labels"].split("|")} - {""}
    return LabelRow(line, name, tuple(sorted(labels)), split)


def as_latin(name: str) -> str:
    """The name of a file as a table in Latin-1 has it, where the file system's is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("latin-1")
    return name


def make_vocabulary(rows: Sequence[LabelRow], given: Sequence[str], path: Path) -> Vocabulary:
    """The labels as given, else those of the table, sorted; they exclude each other when every
    row has exactly one. UserError when a row has a label that is not among those given."""
    names = tuple(given) or tuple(sorted({label for row in rows for label in row.labels}))
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
    return Vocabulary(names, len(names) > 1 and all(len(row.labels) == 1 for row in rows))
