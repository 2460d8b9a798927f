"""The rows of a score folder as one CSV file.

Beside them stand, the same in every row, what scores.json says of the model, and in the rows of a
damaged archive what is wrong with it. Text that a spreadsheet would take for a formula begins
with a quotation mark (').
"""

import os
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.csv as pc

from serve.score_folder import ScoreFolder
from serve.tables import FORMULA
from shards.console import UserError

# As scores.json calls them.
MODEL_COLUMNS = {
    "model": pa.string(),
    "weights_sha256": pa.string(),
    "precision": pa.string(),
    "exclusive": pa.bool_(),
    "synthetic": pa.bool_(),
}
DAMAGE = "archive_damage"
_BEGIN = b'"archive","member","key",'


def check_csv(path: Path, out: Path) -> None:
    """UserError when no file can be written there, or one that is no CSV of scores would be lost;
    asked before hours of work. out: the folder of the scores, which need not be there yet."""
    if path.is_dir():
        raise UserError(f"--csv {path} is a folder; name a file")
    if path.suffix.lower() != ".csv":
        raise UserError(f"--csv {path}; allowed: a name that ends in .csv")
    if path.is_file() and not _may_be_replaced(path):
        raise UserError(f"--csv {path} is there, and not of this command; name another file")
    place, folder = (Path(os.path.realpath(one)) for one in (path, out))  # see _check_apart
    if place.parent == folder:
        return
    if place.is_relative_to(folder):
        raise UserError(f"--csv {path} lies in a folder of the scores; allowed: {out / path.name}")
    if not path.parent.is_dir():
        raise UserError(f"--csv {path}: no folder {path.parent}; make it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--csv {path}: no permission to write into {path.parent}")


def _may_be_replaced(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_BEGIN)) in (_BEGIN, b"")


def write_csv(folder: ScoreFolder, summary: dict[str, Any], path: Path) -> None:
    """All rows in their order, part by part; the file appears by renaming. summary: the content of
    scores.json. UserError when a part is missing or damaged."""
    temporary = path.with_name(f".{path.name}.tmp")  # hidden: no input of the next run
    tables = (_as_told(table, summary, archive) for archive, table in folder.tables())
    first = next(tables)
    with temporary.open("wb") as file:
        with pc.CSVWriter(file, first.schema) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _as_told(rows: pa.Table, summary: dict[str, Any], archive: int) -> pa.Table:
    """The rows of an archive's part with the columns that a table on its own needs."""
    told = {**summary, DAMAGE: summary["archives"][archive]["damage"]}
    for name, kind in {**MODEL_COLUMNS, DAMAGE: pa.string()}.items():
        rows = rows.append_column(name, pa.array([told.get(name)] * len(rows), kind))
    for place, field in enumerate(rows.schema):
        if field.type == pa.string():
            escaped = compute.replace_substring_regex(rows.column(place), f"^({FORMULA})", r"'\1")
            rows = rows.set_column(place, field, escaped)
    return rows
