"""The one reader of CSV tables: (line, cells) of every row, or one line that says what is wrong.

Text is UTF-8, else Windows-1252, with any line ends. Quotes are RFC 4180's. No message quotes a
cell, which may name a patient: it names the line.
"""

import csv
import io
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Iterator, Sequence
from itertools import product
from operator import itemgetter
from pathlib import Path

from shards.console import UserError, first_few, warn

Row = tuple[int, dict[str, str]]  # first line, cell by column
# What pandas, R, SQL and spreadsheets write for nothing, in any case of letters: all 85 spellings,
# as it takes half the time to look a cell up as it stands.
_WORDS = ("nan", "-nan", "na", "n/a", "#n/a", "#na", "<na>", "nat", "null", "none", "\\n")
_SPELLINGS = frozenset(
    "".join(letters) for word in _WORDS for letters in product(*zip(word.lower(), word.upper()))
)
_WHOLE = re.compile(r"\d+(?:\.0+)?", re.ASCII)
MAX_BYTES = 2**30  # MIMIC-CXR's largest table has 0.2 GB
_KINDS = {
    b"PK\x03\x04": "a zip archive, as Excel's .xlsx files are",
    b"\xd0\xcf\x11\xe0": "a file of old Excel (.xls)",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF file",
    BOM_UTF16_LE: "UTF-16",
    BOM_UTF16_BE: "UTF-16",
}
# Beside what str.strip() takes: characters without width, which editors and web pages leave.
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_EDGES = _INVISIBLE + "".join(sign for sign in map(chr, range(0x3001)) if sign.isspace())


def read_rows(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    verbatim: Collection[str] = (),
    show_header: bool = True,
) -> Iterator[Row]:
    """(line, cells by the names asked for) of every row that is not blank. The header's names match
    in any case. A cell is stripped. It is "" for a word for missing, for an optional column that
    the table lacks, and where a row ends before it.

    verbatim: columns in which words for missing are text. show_header: False where a table without
    a header would show a patient's name. UserError: no table, a column that is missing or there
    twice, or a bad row.
    """
    records = read_records(path)
    header = next(records, (1, []))[1]
    places = _places(path, header, required, optional, show_header)
    width = 1 + max(map(places.__getitem__, required))
    absent = dict.fromkeys([c for c in optional if c not in places], "")
    checked = [column for column in places if column not in verbatim]
    columns, pick = tuple(places), itemgetter(*places.values(), 0)  # 0: a tuple of one column too
    full = 1 + max(places.values())
    for line, cells in records:
        if len(cells) < width:
            raise UserError(
                f"{path} line {line} has only {len(cells)} fields, the header {len(header)}; "
                "complete the row or remove it"
            )
        if len(cells) < full:
            cells += [""] * (full - len(cells))
        values = list(map(str.strip, pick(cells)))
        if not "".join(values).isascii():
            values = list(map(clean, values))
        row = absent | dict(zip(columns, values))
        if not _SPELLINGS.isdisjoint(values):
            row |= {column: "" for column in checked if is_missing(row[column])}
        yield line, row


def read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields as they stand) of every record that is not blank, the header's first,
    whose names are stripped. UserError for a file that is no CSV, a quote that takes in rows, and a
    record with more fields than the header, empty ones aside."""
    lines = list(io.StringIO(read_text(path), newline=""))
    records = csv.reader(lines, skipinitialspace=True, strict=True)
    width = end = 0
    try:
        for cells in records:
            begin, end = end + 1, records.line_num
            if begin < end:
                _refuse_taken_in(path, lines, begin, end, width or _header_width(cells))
            if not (cells and clean(cells[0])) and not any(map(clean, cells)):
                continue
            if not width:
                width, cells = len(cells), list(map(clean, cells))
            elif len(cells) > width and any(map(clean, cells[width:])):
                raise UserError(
                    f"{path} line {begin} has {len(cells)} fields, the header {width}; put quotes "
                    "around a field that holds a comma"
                )
            yield begin, cells
    except csv.Error as error:
        raise UserError(_not_csv(path, lines, end + 1, records.line_num, error)) from None


def read_text(path: Path, what: str = "table", form: str = "CSV") -> str:
    """A file as text: UTF-8, else Windows-1252, with a warning. what, form: for messages. UserError
    when it cannot be read, is of a known other kind, or is no text."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read the {what} {path}: {reason}; name a {form} file") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"the {what} {path} is larger than {MAX_BYTES} bytes; divide it")
    for begin, kind in _KINDS.items():
        if data.startswith(begin):
            raise UserError(f"the {what} {path} is {kind}; save it as {form} in UTF-8")
    if b"\0" in data:
        line = _line_of(data, data.index(b"\0"))
        raise UserError(f"{path} line {line} holds a zero byte, so it is no text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return _windows_1252(path, data, _line_of(data, error.start))


def clean(cell: str) -> str:
    """The text without spaces and invisible characters at its ends."""
    cell = cell.strip()
    return cell if cell.isascii() else cell.strip(_EDGES)


def is_missing(cell: str) -> bool:
    """Whether the text is empty or a word for nothing."""
    return not cell or cell in _SPELLINGS


def whole_numbers(ids: Sequence[str]) -> list[str]:
    """The identifiers of a column. Where all that are there are whole numbers, 1.0 is 1: pandas
    writes numbers so in a column with gaps."""
    if not any("." in name for name in ids) or not all(map(_WHOLE.fullmatch, filter(None, ids))):
        return list(ids)
    return [name.partition(".")[0] for name in ids]


def _windows_1252(path: Path, data: bytes, line: int) -> str:
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} line {_line_of(data, error.start)} is neither UTF-8 nor Windows-1252; save it "
            "as UTF-8"
        ) from None
    warn(f"{path} is not UTF-8 (line {line}). It is read as Windows-1252.")
    return text


def _line_of(data: bytes, place: int) -> int:
    before = data[:place].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return 1 + before.count(b"\n")


def _header_width(names: Sequence[str]) -> int:
    """The fields of a header of several lines. 1, which any line has, where a name holds both a
    line end and a comma: it has taken in rows."""
    return 1 if any("," in name and len(name.splitlines()) > 1 for name in names) else len(names)


def _refuse_taken_in(path: Path, lines: Sequence[str], begin: int, end: int, width: int) -> None:
    """UserError when two lines of one record have the commas of a row each: a quote that was not
    closed runs on to the next quote. A note of several lines shares a row's commas out."""
    rows = [n for n in range(begin, end + 1) if width <= lines[n - 1].count(",") + 1]
    if len(rows) > 1:
        opened = _opened(lines, begin, end, closed=True)
        raise UserError(
            f"{path} line {opened}: the quote that opens here takes in line {rows[1]}, which has "
            "the fields of a row; close the quote, or write the field in one line"
        )


def _not_csv(path: Path, lines: Sequence[str], begin: int, end: int, error: csv.Error) -> str:
    if begin == end and "field larger" in str(error):
        return f"{path} line {begin} is not CSV: {error}"
    opened = _opened(lines, begin, end, closed="expected after" in str(error))
    return (
        f"{path} line {opened}: the quote that opens here is not closed at the end of a field; "
        "close it, and write a quote inside of quotes twice"
    )


def _opened(lines: Sequence[str], begin: int, end: int, *, closed: bool) -> int:
    """The line of a record in which the last quoted field begins, or if that is closed, the first
    one that takes several lines."""
    quotes = [
        number
        for number in range(begin, end + 1)
        for _ in range(lines[number - 1].replace('""', "").count('"'))
    ]
    several = (one for one, other in zip(quotes[::2], quotes[1::2]) if one < other)
    return next(several, begin) if closed or not quotes else quotes[-1]


def _places(
    path: Path,
    names: Sequence[str],
    required: Sequence[str],
    optional: Sequence[str],
    show_header: bool,
) -> dict[str, int]:
    """Column as asked for -> its place. UserError when one is missing or there twice."""
    header = [name.casefold() for name in names]
    wanted = {column: column.strip().casefold() for column in [*required, *optional]}
    lacking = [column for column in required if wanted[column] not in header]
    if lacking:
        shown = first_few([name for name in names if name], 20) or "nothing"
        raise UserError(
            f"{path} has no column {', '.join(map(repr, lacking))}"
            f"{f'; it has: {shown}' if show_header else ' in its first line'}"
            f"{separate(names)}; expected: {','.join(required)}"
        )
    twice = [column for column, name in wanted.items() if header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has more than one column {twice[0]!r}; rename the others")
    return {column: header.index(name) for column, name in wanted.items() if name in header}


def separate(names: Sequence[str]) -> str:
    """What to do where a header of one name holds other separators, as Excel's in some countries:
    "" for any other header."""
    other = len(names) == 1 and any(sign in names[0] for sign in ";\t|")
    return "; separate the columns by commas" if other else ""
