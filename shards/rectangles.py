"""The CSV `file,x,y,w,h` of rectangles over words in images, in pixels of the original image.

Messages name lines and numbers, never files: their names may be those of patients.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.console import UserError

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
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    found: dict[str, list[Rectangle]] = defaultdict(list)
    try:
        names = rows.fieldnames or ["nothing"]
        if not set(_COLUMNS) <= set(names):
            raise UserError(f"{path} has the columns {','.join(names)}; expected {_HEADER}")
        for row in rows:
            found[row["file"]].append(_rectangle(row, f"{path} line {rows.line_num}"))
    except csv.Error as error:
        raise UserError(f"{path} line {rows.line_num} is not CSV: {error}") from error
    if not found:
        raise UserError(f"{path} has no rectangle; give rows {_HEADER}")
    return {file: tuple(several) for file, several in found.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a CSV {_HEADER}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); give a CSV {_HEADER}") from error


def _rectangle(row: Mapping[str, str | None], where: str) -> Rectangle:
    texts = [row[name] or "" for name in _COLUMNS[1:]]
    try:
        x, y, w, h = map(float, texts)
    except ValueError:
        x = y = w = h = 0.0
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and all(map(math.isfinite, (x, y, w, h)))):
        raise UserError(
            f"{where}: x,y,w,h are {','.join(texts)}; expected numbers, x and y from 0, w and h "
            "above 0"
        )
    return Rectangle(x, y, w, h)
