"""A CSV or Parquet file as columns, checked: the ways a stranger's table comes in."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.console import UserError, first_few
from shards.csv_table import clean, is_missing, read_records, separate, whole_numbers
from shards.labels import UNKNOWN, warn_of_variants

KEY = "key"
CLASS = "label"
# Such text is a formula to a spreadsheet, or would be read as one: it is written with one ' more.
FORMULA = r"'*[=+@\t\r-]"

META_COLUMNS = ("view", "sex", "age", "source")
# Columns of our own and of common tables that are no label.
_NO_LABEL = {KEY, "archive", "member", "predicted", "model_sha256", "preprocessing_version"} | {
    *("model", "weights_sha256", "precision", "exclusive", "synthetic", "archive_damage"),
    *("error", "patient", "split", "file", "width", "height", "dataset", "shard", "labels"),
    *("sha256", "pixel_sha256"),
    *("", "unnamed: 0", "__index_level_0__"),  # row numbers, as pandas writes them
    *META_COLUMNS,
}


@dataclass(frozen=True)
class Table:
    """columns: name -> one value per row (text from CSV, any scalar from Parquet); lines: of a CSV,
    the first line of each row."""

    path: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int] | None = None

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, row: int) -> str:
        """Where a row stands, for a message."""
        number = f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"
        return f"{self.path} {number}"

    def named(self, name: str) -> str | None:
        """The column that has this name in any case (Patient for patient), None without one. For
        those that are no label: a label is what its column says."""
        return next((one for one in self.columns if one.lower() == name.lower()), None)

    def label_names(self, classes: Collection[str] = ()) -> list[str]:
        """The columns that are labels; classes: those that are, whatever they are called. UserError
        when there is none."""
        names = [name for name in self.columns if name in classes or name.lower() not in _NO_LABEL]
        if not names:
            raise UserError(
                f"{self.path} has no column for a label; it has: {', '.join(self.columns)}"
            )
        return names

    def texts(self, name: str, known: Collection[str] = ()) -> list[str | None] | None:
        """The column of this name in any case as text, None where it is empty or a word for
        missing that is not among those known; None when there is no such column."""
        names = self.names(name)
        return names and [x if x in known or not is_missing(x or "") else None for x in names]

    def names(self, name: str) -> list[str | None] | None:
        """As `texts`, of names: whatever text there is, as none.png has the key `none`."""
        column = self.named(name)
        if column is None:
            return None
        return [None if _is_empty(value) else str(value) for value in self.columns[column]]

    def patients(self) -> list[str | None] | None:
        """As `texts`, of the column `patient`; 1.0 is 1 where all are whole numbers."""
        found = self.texts("patient")
        return found and [name or None for name in whole_numbers([one or "" for one in found])]

    def keys(self, chosen: Sequence[bool] | None = None) -> list[str]:
        """The `key` column, of the chosen rows. UserError when one has none, or one that is no
        text."""
        column = self.columns[self.named(KEY) or KEY]
        found = list(compress(enumerate(column), [True] * self.rows if chosen is None else chosen))
        for row, value in found:
            if _is_empty(value):
                raise UserError(f"{self.place(row)} has no {KEY}")
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                raise UserError(
                    f"{self.place(row)} has the {KEY} {value!r} ({type(value).__name__}); "
                    "allowed: text and whole numbers: write the column as text"
                )
        return [str(value) for _, value in found]

    def numbers(self, name: str) -> np.ndarray:
        """(rows,) float64, NaN where the column is empty. UserError for other text."""
        return np.array([self._number(name, i) for i in range(self.rows)], np.float64)

    def labels(self, name: str) -> np.ndarray:
        """(rows,) int8: 1 yes, 0 no, -1 or empty unknown. UserError for other values."""
        numbers = self.numbers(name)
        numbers[np.isnan(numbers)] = UNKNOWN
        bad = np.flatnonzero(~np.isin(numbers, (1, 0, -1)))
        if bad.size:
            row = int(bad[0])
            found = self.columns[name][row]
            raise UserError(
                f"{self.place(row)}, column {name!r}: a label is 1, 0, or -1 or empty "
                f"for unknown, found {found!r}"
            )
        return numbers.astype(np.int8)

    def spread_classes(self, known: Collection[str] = ()) -> "Table":
        """A table whose column `label` names each row's class, as one with a column per class: 1 in
        the row's own, 0 in the others, nothing in a row without a class. Any other: itself. known:
        words for missing among these are classes."""
        named = self.texts(CLASS, known)
        if named is None or all(name is None or _is_number(name) for name in named):
            return self
        classes = sorted({name for name in named if name is not None})
        warn_of_variants(classes, self.path)
        repeated = [name for name in classes if name in self.columns]
        if repeated:
            raise UserError(
                f"{self.path} has a column {repeated[0]!r} and a class {repeated[0]!r} in its "
                f"column {CLASS!r}; give one column per label, or {CLASS!r} alone"
            )
        of_classes = self.named(CLASS)
        columns = {name: values for name, values in self.columns.items() if name != of_classes}
        for one in classes:
            columns[one] = [None if name is None else int(name == one) for name in named]
        return Table(self.path, columns, self.lines)

    def _number(self, name: str, row: int) -> float:
        value = self.columns[name][row]
        if _is_empty(value) or (isinstance(value, str) and is_missing(value)):
            return math.nan
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{self.place(row)}, column {name!r}: expected a number, found {value!r}"
            ) from None


def read_table(path: Path) -> Table:
    """Read a `.csv` or `.parquet` file that has a `key` column. UserError when it is not one."""
    if not path.is_file():
        raise UserError(f"no file {path}; give a folder, a .csv or a .parquet file")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} ends in {suffix!r}; give a folder, a .csv or a .parquet file")
    table = _read_csv(path) if suffix == ".csv" else Table(path, _read_parquet(path))
    if table.named(KEY) is None:
        found = first_few(list(table.columns), 20)
        hint = separate(list(table.columns))
        raise UserError(f"{path} has no column {KEY!r}; it has: {found}{hint}")
    return table


def _read_csv(path: Path) -> Table:
    header, *rows = list(read_records(path)) or [(1, [])]
    names = header[1]
    if not names:
        raise UserError(f"{path} is empty; expected a header with the column {KEY!r}")
    _refuse_repeats(path, [name for name in names if name])
    for line, row in rows:
        if len(row) < len(names):
            raise UserError(f"{path} line {line} has {len(row)} fields, the header {len(names)}")
    columns = {name: [_cell(row[i]) for _, row in rows] for i, name in enumerate(names) if name}
    return Table(path, columns, [line for line, _ in rows])


def _cell(text: str) -> str:
    """Without spaces around it, and without the sign that it is no formula."""
    return clean(text[1:] if text.startswith("'") and re.match(FORMULA, text) else text)


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file that can be read ({error})") from error
    _refuse_repeats(path, table.column_names)
    return {name: _values(table.column(name)) for name in table.column_names}


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Text also of a column of bytes, where they are text, without spaces around it."""
    values = column.to_pylist()
    try:
        values = [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError:
        return values
    return [clean(value) if isinstance(value, str) else value for value in values]


def _refuse_repeats(path: Path, names: Sequence[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        before = taken.get(name.lower())
        if before == name:
            raise UserError(f"{path} has the column {name!r} twice; rename one of them")
        if before is not None:
            raise UserError(
                f"{path} has the columns {before!r} and {name!r}, which differ only in case; "
                "rename one of them"
            )
        taken[name.lower()] = name


def _is_empty(value: Any) -> bool:
    if isinstance(value, float):  # Parquet keeps nothing and NaN apart
        return math.isnan(value)
    return value is None or value == ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
