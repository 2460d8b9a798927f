"""Which file each hash of a DICOM set stands for: a CSV beside the key, for the key's owner alone.

Columns: hash (as in the shards and, with `.dcm`, in quarantine.parquet), path below --src, problem
(why its header cannot be read; empty where it can).
"""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from shards.console import warn

Row = tuple[str, str, str]  # hash, path, problem


def map_path(key_file: Path, dataset: str) -> Path:
    """Where the map of a data set is written."""
    return key_file.with_name(f"{key_file.name}.{dataset}.csv")


def write_map(path: Path, rows: Iterable[Row]) -> None:
    """The map, whole, mode 600. A warning where it cannot be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file).writerows([("hash", "path", "problem"), *rows])
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        warn(f"cannot write {path}, which tells the files of the hashes: {error.strerror}")
