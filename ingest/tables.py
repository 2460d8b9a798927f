"""The tables and lists beside a data set's shards: samples.parquet, excluded.parquet, lists/."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.choice import Excluded, Kept
from ingest.record import Record
from shards.console import UserError
from shards.manifest import SplitCounts
from shards.writer import write_atomic

SAMPLES, EXCLUDED, LISTS = "samples.parquet", "excluded.parquet", "lists"
_BESIDE = ("*.parquet", "*.html", f"{LISTS}/*.txt")
_SAMPLES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("patient", pa.string()),
        ("view", pa.string()),
        ("age", pa.int32()),
        ("sex", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("pixel_sha256", pa.string()),
        ("near_hash", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
_EXCLUDED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "file", "reason", "duplicate_of")]
)


def sample_row(kept: Kept, shard: str, names: Sequence[str]) -> dict[str, Any]:
    """A row of samples.parquet. names: the vocabulary's, whose order the labels get: a resplit
    knows no other one."""
    record, entry = kept.record, kept.entry
    return {
        "key": record.key,
        "split": kept.split,
        "shard": shard,
        "labels": [name for name in names if name in record.labels],
        "patient": record.patient,
        "view": record.view,
        "age": record.age,
        "sex": record.sex,
        "source": kept.source,
        "file": record.file,
        "sha256": entry.sha256,
        "pixel_sha256": entry.pixel_sha256,
        "near_hash": entry.near_hash,
        "width": entry.width,
        "height": entry.height,
    }


def write_samples(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """samples.parquet: one row per sample, in the order of the shards."""
    write_table(folder / SAMPLES, rows, _SAMPLES_SCHEMA)


def excluded_row(excluded: Excluded) -> dict[str, Any]:
    """A row of excluded.parquet."""
    return {
        "key": excluded.record.key,
        "file": excluded.record.file,
        "reason": excluded.reason,
        "duplicate_of": excluded.duplicate_of,
    }


def write_excluded(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """excluded.parquet: one row per image left out on purpose or missing."""
    write_table(folder / EXCLUDED, sorted(rows, key=lambda r: r["key"]), _EXCLUDED_SCHEMA)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table. UserError when it is missing or damaged."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        what = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise UserError(f"{path} is {what}; ingest the data set again") from None
    return rows


def write_lists(folder: Path, kept: Sequence[Kept], splits: Mapping[str, SplitCounts]) -> None:
    """lists/<split>.txt: the source's names, which --train-list and the like take back; in place
    of a name that a line of text cannot hold, the key."""
    lists = folder / LISTS
    lists.mkdir(exist_ok=True)
    for stale in lists.glob("*.txt"):
        stale.unlink()
    for split in splits:
        names = sorted(_line(k.record) for k in kept if k.split == split)
        write_atomic(lists / f"{split}.txt", "".join(f"{name}\n" for name in names).encode())


def _line(record: Record) -> str:
    file = record.file
    # A name with a line break would be two lines; one that is not Unicode has no text of its own.
    plain = file.isprintable() and file == file.strip() and "\ufffd" not in file
    return file if plain else record.key


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: Any) -> None:
    """A Parquet file, there as a whole or not at all."""
    write_atomic(path, table_bytes(rows, schema))


def table_bytes(rows: Sequence[Mapping[str, Any]], schema: Any) -> bytes:
    """A Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), buffer)
    return buffer.getvalue()


def file_hashes(folder: Path) -> dict[str, str]:
    """Path below the data set -> SHA-256, for the tables, the lists and the audit page."""
    paths = sorted(path for pattern in _BESIDE for path in folder.glob(pattern))
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
