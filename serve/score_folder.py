"""A folder of scores: what was asked, one Parquet file per finished unit of work, the summary.

`request.json` is written first and pins the request; `parts/part-<archive>-<unit>.parquet` hold the
rows; `ends/archive-<archive>.json` says that an archive was read to its end; `scores.json` is
written last. Every file appears by renaming, so what is there is whole.
"""

import fcntl
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.thresholds import OperatingPoint, call
from shards.console import UserError
from shards.writer import write_atomic

REQUEST_FILE, SUMMARY_FILE, PARTS_FOLDER = "request.json", "scores.json", "parts"
ENDS_FOLDER = "ends"
MARKS = frozenset((REQUEST_FILE, PARTS_FOLDER, ENDS_FOLDER))  # of a folder of scores, done or not
PROBABILITY_PREFIX = "prob_"
CALL_PREFIX = "call_"


@dataclass(frozen=True)
class Row:
    """One input's outcome. member: its name in the archive, empty in the row that stands for the
    unreadable rest of an archive; probabilities: (L,) float32, None with an error."""

    archive: str
    member: str
    key: str
    probabilities: np.ndarray | None
    error: str | None


@dataclass(frozen=True)
class ArchiveEnd:
    """An archive that was read to its end. inputs: rows it gives; skipped: reason -> members;
    damage: why its rest, or that of an archive in it, could not be read; rests: the rows that stand
    for such a rest."""

    inputs: int
    skipped: dict[str, int]
    damage: str | None
    rests: int = 0


@dataclass(frozen=True)
class Columns:
    """What the rows of a folder have in common. points: of each label, where an operating point was
    asked for; each row then has `call_<label>`, null for a label without a threshold."""

    labels: tuple[str, ...]
    exclusive: bool
    model_sha256: str
    preprocessing_version: int
    points: tuple[OperatingPoint | None, ...] | None = None

    @property
    def schema(self) -> pa.Schema:
        probabilities = [(PROBABILITY_PREFIX + label, pa.float32()) for label in self.labels]
        called = () if self.points is None else self.labels
        return pa.schema(
            [
                ("archive", pa.string()),
                ("member", pa.string()),
                ("key", pa.string()),
                *probabilities,
                ("predicted", pa.string()),
                *((CALL_PREFIX + label, pa.bool_()) for label in called),
                ("model_sha256", pa.string()),
                ("preprocessing_version", pa.int32()),
                ("error", pa.string()),
            ]
        )

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """The rows as a table of `schema`."""
        return pa.Table.from_pylist([self._record(row) for row in rows], schema=self.schema)

    def _record(self, row: Row) -> dict[str, Any]:
        record: dict[str, Any] = {
            "archive": row.archive,
            "member": row.member,
            "key": row.key,
            "predicted": None,
            "model_sha256": self.model_sha256,
            "preprocessing_version": self.preprocessing_version,
            "error": row.error,
        }
        if row.probabilities is not None:
            pairs = list(zip(self.labels, row.probabilities.tolist()))
            record |= {PROBABILITY_PREFIX + label: value for label, value in pairs}
            record["predicted"] = self.predicted(row.probabilities)
            if self.points is not None:
                calls = call(row.probabilities, self.points)
                record |= {CALL_PREFIX + label: found for label, found in zip(self.labels, calls)}
        return record

    def predicted(self, probabilities: np.ndarray) -> str:
        """The label of the highest probability; of labels that do not exclude each other, those
        with at least one half, joined by `|`."""
        if self.exclusive:
            return self.labels[int(probabilities.argmax())]
        return "|".join(label for label, p in zip(self.labels, probabilities) if p >= 0.5)


class ScoreFolder:
    """Reads and writes one folder of scores."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts, self.ends = path / PARTS_FOLDER, path / ENDS_FOLDER

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of this folder. The lock ends with the process."""
        self.parts.mkdir(parents=True, exist_ok=True)
        self.ends.mkdir(exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another run is writing to {self.path}; wait for it or use another --out"
                ) from None
            yield

    def begin(self, request: dict[str, Any]) -> None:
        """Pin the request. UserError when the folder belongs to another one."""
        path = self.path / REQUEST_FILE
        if not path.is_file():
            if self.finished_units() or self.summary() is not None:
                raise UserError(f"{self.path} holds scores without {REQUEST_FILE}; use a new --out")
            write_atomic(path, _json_bytes(request))
            return
        found = _load(path)
        compared = {*found, *request} - {"inputs"}  # how the archives were named
        differing = sorted(k for k in compared if found.get(k) != request.get(k))
        if differing:
            raise UserError(
                f"{self.path} holds the scores of another request: {differing[0]} was "
                f"{_short(found.get(differing[0]))}, now {_short(request.get(differing[0]))}"
                f"{_others(differing[1:])}; use another --out, or delete that folder"
            )

    def request(self) -> dict[str, Any]:
        """`request.json`. UserError when it is not there."""
        path = self.path / REQUEST_FILE
        if not path.is_file():
            raise UserError(f"no {REQUEST_FILE} in {self.path}; score again")
        return _load(path)

    def finished_units(self) -> set[tuple[int, int]]:
        """(archive, unit) of every part that is there."""
        names = [path.stem.split("-") for path in self.parts.glob("part-*-*.parquet")]
        return {(int(archive), int(unit)) for _, archive, unit in names}

    def write_unit(self, archive: int, unit: int, table: pa.Table) -> None:
        """Commit a unit's rows."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        _commit(self.parts / f"part-{archive:05d}-{unit:06d}.parquet", buffer.getvalue())

    def write_end(self, archive: int, end: ArchiveEnd) -> None:
        """Commit that an archive was read to its end; after its last unit."""
        _commit(self.ends / f"archive-{archive:05d}.json", _json_bytes(asdict(end)))

    def end_of(self, archive: int) -> ArchiveEnd | None:
        """What was written at an archive's end; None while it is not finished."""
        path = self.ends / f"archive-{archive:05d}.json"
        return ArchiveEnd(**_load(path)) if path.is_file() else None

    def summary(self) -> dict[str, Any] | None:
        """`scores.json`, None while the run is not finished."""
        path = self.path / SUMMARY_FILE
        return _load(path) if path.is_file() else None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `scores.json`: the folder is finished."""
        write_atomic(self.path / SUMMARY_FILE, _json_bytes(summary))

    def part_paths(self, archive: int | None = None) -> list[Path]:
        """The parts in the order of the rows: of one archive, or of all."""
        chosen = "*" if archive is None else f"{archive:05d}"
        return sorted(self.parts.glob(f"part-{chosen}-*.parquet"))

    def read(self) -> pa.Table:
        """All rows, one table. UserError when the folder is not finished or damaged."""
        if self.summary() is None:
            raise UserError(
                f"no {SUMMARY_FILE} in {self.path}: the scoring is not finished; run the same "
                "serve score command again"
            )
        try:
            return pa.concat_tables([pq.read_table(path) for path in self.part_paths()])
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"damaged scores in {self.parts} ({error}); score again") from error

    def count(self, archive: int) -> tuple[int, int]:
        """(rows, rows with an error) of an archive, as its parts have them."""
        rows = errors = 0
        for path in self.part_paths(archive):
            column = pq.read_table(path, columns=["error"]).column("error")
            rows += len(column)
            errors += len(column) - column.null_count
        return rows, errors


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete the folder and score again"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is damaged (no object); delete the folder and score again")
    return loaded


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _others(names: list[str]) -> str:
    return f" (and also: {', '.join(names)})" if names else ""


def _commit(path: Path, data: bytes) -> None:
    write_atomic(path, data)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the renaming itself
    finally:
        os.close(folder)
