"""The rows of a score folder as one CSV file."""

import os
from pathlib import Path

import pyarrow.csv as pc
import pyarrow.parquet as pq

from serve.score_folder import ScoreFolder
from shards.console import UserError


def check_csv(path: Path) -> None:
    """UserError when no file can be written there; asked before hours of work."""
    if path.is_dir():
        raise UserError(f"--csv {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"--csv {path}: no folder {path.parent}; make it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--csv {path}: no permission to write into {path.parent}")


def write_csv(folder: ScoreFolder, path: Path) -> None:
    """All rows in their order, part by part; the file appears by renaming."""
    temporary = path.with_name(path.name + ".tmp")
    parts = folder.part_paths()
    with temporary.open("wb") as file:
        with pc.CSVWriter(file, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
