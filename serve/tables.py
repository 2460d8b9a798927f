"""A CSV or Parquet file as columns, checked: the ways a stranger's table comes in."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.console import UserError
from shards.labels import UNKNOWN

KEY = "key"
CLASS = "label"
_EMPTY = ("", "nan", "na", "null", "none")


@dataclass(frozen=True)
class Table:
    """columns: name -> one value per row (text from CSV, any scalar from Parquet)."""

    path: Path
    columns: dict[str, list[Any]]

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def named(self, name: str) -> str | None:
        """The column that has this name in any case (Patient for patient), None without one. For
        those that are no label: a label is what its column says."""
        return next((one for one in self.columns if one.lower() == name.lower()), None)

    def texts(self, name: str) -> list[str | None] | None:
        """The column of this name in any case as text, None where it is empty; None when there is
        no such column."""
        column = self.named(name)
        if column is None:
            return None
        return [None if _is_empty(value) else str(value) for value in self.columns[column]]

    def keys(self) -> list[str]:
        """The `key` column. UserError when a row has none."""
        keys = self.texts(KEY) or []
        if None in keys:
            raise UserError(f"{self.path}: row {keys.index(None) + 1} has no {KEY}")
        return [key for key in keys if key is not None]

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
                f"{self.path}: row {row + 1}, column {name!r}: a label is 1, 0, or -1 or empty "
                f"for unknown, found {found!r}"
            )
        return numbers.astype(np.int8)

    def spread_classes(self) -> "Table":
        """A table whose column `label` names each row's class, as one with a column per class: 1 in
        the row's own, 0 in the others, nothing in a row without a class. Any other: itself."""
        named = self.texts(CLASS)
        if named is None or all(name is None or _is_number(name) for name in named):
            return self
        classes = sorted({name for name in named if name is not None})
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
        return Table(self.path, columns)

    def _number(self, name: str, row: int) -> float:
        value = self.columns[name][row]
        if _is_empty(value):
            return math.nan
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UserError(
                f"{self.path}: row {row + 1}, column {name!r}: expected a number, found {value!r}"
            ) from None


def read_table(path: Path) -> Table:
    """Read a `.csv` or `.parquet` file that has a `key` column. UserError when it is not one."""
    if not path.is_file():
        raise UserError(f"no file {path}; give a folder, a .csv or a .parquet file")
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} ends in {suffix!r}; give a folder, a .csv or a .parquet file")
    table = Table(path, _read_csv(path) if suffix == ".csv" else _read_parquet(path))
    if table.named(KEY) is None:
        raise UserError(f"{path} has no column {KEY!r}; it has: {', '.join(table.columns)}")
    return table


def _read_csv(path: Path) -> dict[str, list[Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from error
    except ValueError:
        raise UserError(f"{path} is empty; expected a header with the column {KEY!r}") from None
    rows = [row for row in rows if row]
    header = [name.strip() for name in header]
    _refuse_repeats(path, header)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise UserError(f"{path}: row {number} has {len(row)} fields, the header {len(header)}")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file that can be read ({error})") from error
    _refuse_repeats(path, table.column_names)
    return {name: table.column(name).to_pylist() for name in table.column_names}


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
    return value is None or (isinstance(value, str) and value.strip().lower() in _EMPTY)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
