"""CSV tables of metadata: (line, cells by column) per row, whatever case and spaces the header has.

Publishers change `patientid` to `Patientid` and `url` to ` url`, and write UTF-8 or Latin-1.
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shards.console import UserError

Row = tuple[int, dict[str, str]]
_MAX_AGE = 120  # older ones are typing errors


def read_rows(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """(line, cells) of every row that is not blank; a cell is stripped, an optional column that is
    not there gives "". UserError for no such file, a missing column, or a row that is cut short."""
    rows = csv.reader(io.StringIO(table_text(path), newline=""))
    try:
        places = _places(path, [column.strip() for column in next(rows, [])], required, optional)
        width = 1 + max(places[column] for column in required)
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) < width:
                raise UserError(f"{path} line {rows.line_num} has only {len(row)} fields: {row}")
            cells = {
                column: row[place].strip() if place < len(row) else ""
                for column, place in places.items()
            }
            yield rows.line_num, dict.fromkeys(optional, "") | cells
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num} is not CSV: {error}") from error


def table_text(path: Path) -> str:
    """The table as text: UTF-8, else Latin-1. UserError when it cannot be read or is UTF-16."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {error.strerror}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"the table {path} is UTF-16; save it as CSV in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _places(
    path: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    """Column as asked for -> its place."""
    header = [name.casefold() for name in names]
    wanted = {column: column.strip().casefold() for column in [*required, *optional]}
    lacking = [column for column in required if wanted[column] not in header]
    if lacking:
        one = len(names) == 1 and any(mark in names[0] for mark in ";\t")
        raise UserError(
            f"{path} has no column {', '.join(map(repr, lacking))}; it has: "
            f"{', '.join(filter(None, names)) or 'nothing'}"
            f"{'; separate the columns by commas' if one else ''}"
        )
    twice = [column for column, name in wanted.items() if header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has more than one column {twice[0]!r}; rename the others")
    return {column: header.index(name) for column, name in wanted.items() if name in header}


def refuse_repeats(names: Iterable[str], path: Path) -> None:
    """UserError when the table names no image, or one image twice."""
    counts = Counter(names)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise UserError(
            f"{path} names {len(repeated)} images more than once, such as {repeated[0]}; expected "
            "one row per image; remove the others"
        )
    if not counts:
        raise UserError(f"{path} names no image; expected one row per image")


def years(text: str) -> int | None:
    """Age in whole years: `58`, `58.5`; None for anything else (`50+`, `early 40s`)."""
    match = re.fullmatch(r"(\d{1,3})(?:\.\d+)?", text)
    age = int(match[1]) if match else None
    return age if age is not None and age <= _MAX_AGE else None
