"""The CSV `file,x,y,w,h` of rectangles over words in images, in pixels of the original image.

Messages name lines and numbers, never files: their names may be those of patients.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.console import UserError
from shards.csv_table import read_rows

_COLUMNS = ("file", "x", "y", "w", "h")
_HEADER = ",".join(_COLUMNS)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Left, top, width and height in pixels of the original image, upright."""

    x: float
    y: float
    w: float
    h: float


Rectangles = Mapping[str, tuple[Rectangle, ...]]  # file -> its rectangles


def read_rectangles(path: Path) -> Rectangles:
    """The rectangles of each file, at least one. UserError when the table is none."""
    found: dict[str, list[Rectangle]] = defaultdict(list)
    for line, row in read_rows(path, _COLUMNS, verbatim=("file",), show_header=False):
        if not row["file"]:
            raise UserError(f"{path} line {line} names no file; give rows {_HEADER}")
        found[row["file"]].append(_rectangle(row, f"{path} line {line}"))
    if not found:
        raise UserError(f"{path} has no rectangle; give rows {_HEADER}")
    return {file: tuple(several) for file, several in found.items()}


def _rectangle(row: Mapping[str, str], where: str) -> Rectangle:
    expected = "expected numbers, x and y from 0, w and h above 0"
    try:
        x, y, w, h = (float(row[name]) for name in _COLUMNS[1:])
    except ValueError:  # it may be half of a name that holds a comma
        raise UserError(f"{where}: one of x,y,w,h is no number; {expected}") from None
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and all(map(math.isfinite, (x, y, w, h)))):
        raise UserError(f"{where}: x,y,w,h are {x:g},{y:g},{w:g},{h:g}; {expected}")
    return Rectangle(x, y, w, h)
