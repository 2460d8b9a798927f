"""A folder of scores: what was asked, one Parquet file per finished unit of work, the summary.

`request.json` is written first and pins the request; `parts/part-<archive>-<unit>.parquet` hold the
rows; `ends/archive-<archive>.json` says that an archive was read to its end; `scores.json` is
written last. Every file appears by renaming, so what is there is whole; what became of it since is
checked wherever it is read.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve import score_json
from serve.thresholds import OperatingPoint, called
from shards.console import UserError
from shards.lock import hold
from shards.writer import write_atomic

REQUEST_FILE, SUMMARY_FILE, PARTS_FOLDER = "request.json", "scores.json", "parts"
ENDS_FOLDER = "ends"
MARKS = frozenset((REQUEST_FILE, PARTS_FOLDER, ENDS_FOLDER))  # of a folder of scores, done or not
UNIT_INPUTS = 512  # rows of a part, but for the last of an archive
PROBABILITY_PREFIX = "prob_"
CALL_PREFIX = "call_"
_PART = re.compile(r"part-(\d{5,})-(\d{6,})\.parquet")


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
        return schema_of(self.labels, called=self.points is not None)

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """The rows as a table of `schema`."""
        missing = np.array([row.probabilities is None for row in rows], bool)
        values = np.zeros((len(rows), len(self.labels)), np.float32)
        for place, row in enumerate(rows):
            if row.probabilities is not None:
                values[place] = row.probabilities

        def of_images(column: Any) -> pa.Array:
            return pa.array(column, mask=missing)

        probabilities = dict(zip(self.labels, values.T))
        columns = {
            "archive": [row.archive for row in rows],
            "member": [row.member for row in rows],
            "key": [row.key for row in rows],
            **{PROBABILITY_PREFIX + name: of_images(p) for name, p in probabilities.items()},
            "predicted": of_images(self._predicted(values)),
            "model_sha256": [self.model_sha256] * len(rows),
            "preprocessing_version": [self.preprocessing_version] * len(rows),
            "error": [row.error for row in rows],
        }
        for name, point in zip(self.labels, self.points or ()):
            columns[CALL_PREFIX + name] = (
                pa.nulls(len(rows), pa.bool_())
                if point is None
                else of_images(called(probabilities[name], point))
            )
        return pa.Table.from_pydict(columns, schema=self.schema)

    def _predicted(self, probabilities: np.ndarray) -> list[str]:
        """(N, L) -> the label of the highest one; of labels that do not exclude each other, those
        with at least one half, joined by `|`."""
        if self.exclusive:
            return [self.labels[place] for place in probabilities.argmax(axis=1).tolist()]
        return ["|".join(compress(self.labels, row)) for row in (probabilities >= 0.5).tolist()]


def schema_of(labels: Sequence[str], *, called: bool) -> pa.Schema:
    """The columns of every part. called: with an operating point."""
    probabilities = [(PROBABILITY_PREFIX + label, pa.float32()) for label in labels]
    return pa.schema(
        [
            ("archive", pa.string()),
            ("member", pa.string()),
            ("key", pa.string()),
            *probabilities,
            ("predicted", pa.string()),
            *((CALL_PREFIX + label, pa.bool_()) for label in (labels if called else ())),
            ("model_sha256", pa.string()),
            ("preprocessing_version", pa.int32()),
            ("error", pa.string()),
        ]
    )


def damage_of(summary: dict[str, Any]) -> list[str]:
    """The archives of scores.json that could not be read to their end, each with the reason."""
    return [f"{one['name']}: {one['damage']}" for one in summary["archives"] if one["damage"]]


def unit_count(inputs: int) -> int:
    """Units of an archive with so many inputs."""
    return -(-inputs // UNIT_INPUTS)


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
            if not hold(file):
                raise UserError(
                    f"another run is writing to {self.path}; wait for it or use another --out"
                )
            yield

    def begin(self, request: dict[str, Any], *, free: Set[str] = frozenset()) -> None:
        """Pin the request. free: what may be another than it was. UserError when the folder belongs
        to another request."""
        path = self.path / REQUEST_FILE
        if not path.is_file():
            if self.finished_units() or self.summary() is not None:
                raise UserError(f"{self.path} holds scores without {REQUEST_FILE}; use a new --out")
            write_atomic(path, _json_bytes(request))
            return
        found, request = self.request(), json.loads(_json_bytes(request))  # tuples are lists there
        compared = {*found, *request} - {"inputs"} - free  # inputs: how the archives were named
        differing = sorted(k for k in compared if found.get(k) != request.get(k))
        if differing == ["provider"] and found["provider"] != "auto":  # auto: of an earlier version
            was, now = found["provider"], request["provider"]
            raise UserError(
                f"{self.path} holds scores of --provider {was}, now {now}, and those of two do not "
                f"mix; go on with --provider {was}, or with --provider {now} into another --out"
            )
        if differing:
            first, *others = differing
            said = score_json.first_difference(found.get(first), request.get(first), first)
            also = f" (and also: {', '.join(others)})" if others else ""
            raise UserError(
                f"{self.path} holds the scores of another request: {said}{also}; use another "
                "--out, or delete that folder"
            )

    def forget(self) -> None:
        """Undo `begin`, for a request that has no rows."""
        for end in self.ends.iterdir():
            end.unlink()
        (self.path / REQUEST_FILE).unlink()

    def request(self) -> dict[str, Any]:
        """`request.json`. UserError when it is damaged or not there."""
        path = self.path / REQUEST_FILE
        if not path.is_file():
            raise UserError(f"no {REQUEST_FILE} in {self.path}; score again")
        return score_json.load(
            path, score_json.REQUEST, "score into another --out, or delete that folder"
        )

    def finished_units(self) -> set[tuple[int, int]]:
        """(archive, unit) of every part that is there."""
        return set(self._units())

    def write_unit(self, archive: int, unit: int, table: pa.Table) -> None:
        """Commit a unit's rows."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        _commit(self._part(archive, unit), buffer.getvalue())

    def write_end(self, archive: int, end: ArchiveEnd) -> None:
        """Commit that an archive was read to its end; after its last unit."""
        _commit(self.ends / f"archive-{archive:05d}.json", _json_bytes(asdict(end)))

    def end_of(self, archive: int) -> ArchiveEnd | None:
        """What was written at an archive's end; None while it is not finished."""
        path = self.ends / f"archive-{archive:05d}.json"
        if not path.is_file():
            return None
        found = score_json.load(path, score_json.END, "delete it, and the same command goes on")
        return ArchiveEnd(**{name: found[name] for name in score_json.END})

    def summary(self) -> dict[str, Any] | None:
        """`scores.json`, None while the run is not finished. UserError when it is damaged."""
        path = self.path / SUMMARY_FILE
        if not path.is_file():
            return None
        return score_json.load(
            path, score_json.SUMMARY, "delete it, and the same serve score command makes it again"
        )

    def finished(self) -> dict[str, Any]:
        """`scores.json`. UserError while the run is not finished."""
        found = self.summary()
        if found is None:
            raise UserError(
                f"no finished scores in {self.path} (no {SUMMARY_FILE}); run the same serve score "
                "command again"
            )
        return found

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `scores.json`: the folder is finished."""
        write_atomic(self.path / SUMMARY_FILE, _json_bytes(summary))

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """(archive, rows) of every part of a finished folder in their order, of all columns or of
        some. UserError when it is not finished, or a part is missing, damaged or too many."""
        done = self.finished()
        inputs = [archive["rows"] for archive in done["archives"]]
        if max(inputs, default=0) < 1:
            raise UserError(f"{self.path / SUMMARY_FILE} tells of no rows; {self._again('')}")
        self._check_complete(inputs)
        schema = schema_of(done["labels"], called=done.get("operating_point") is not None)
        yield from self._checked(inputs, schema, columns)

    def read(self) -> pa.Table:
        """All rows, one table. UserError as with tables()."""
        return pa.concat_tables([table for _, table in self.tables()])

    def check(self) -> None:
        """Read all of a finished folder, 2 ms a part. UserError as with tables()."""
        for _ in self.tables():
            pass

    def counts(self, ends: Sequence[ArchiveEnd | None], schema: pa.Schema) -> list[tuple[int, int]]:
        """(rows, rows with an error) that are there of each archive. UserError for a part that is
        damaged or does not belong there."""
        rows, errors = ([0] * len(ends) for _ in range(2))
        inputs = [None if end is None else end.inputs for end in ends]
        for archive, table in self._checked(inputs, schema, None):
            rows[archive] += len(table)
            errors[archive] += len(table) - table.column("error").null_count
        return list(zip(rows, errors))

    def _check_complete(self, inputs: Sequence[int]) -> None:
        """UserError when a part of archives with so many inputs is missing."""
        there = self._units()
        for archive, count in enumerate(inputs):
            for unit in range(unit_count(count)):
                if (archive, unit) not in there:
                    raise UserError(f"{self._part(archive, unit)} is missing; {self._again('')}")

    def _checked(
        self, inputs: Sequence[int | None], schema: pa.Schema, columns: Sequence[str] | None
    ) -> Iterator[tuple[int, pa.Table]]:
        """inputs: of each archive, None where that is not known yet."""
        for (archive, unit), path in self._units().items():
            known = inputs[archive] if archive < len(inputs) else 0
            most = UNIT_INPUTS if known is None else min(UNIT_INPUTS, known - unit * UNIT_INPUTS)
            if most <= 0:
                raise UserError(f"{path} is none of these scores; remove it")
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    found, table = file.schema_arrow, file.read(columns)
                table.validate(full=True)  # that text is UTF-8
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if getattr(error, "errno", None):  # of the disk, not of the file
                    raise
                raise UserError(f"{path} is damaged ({error}); {self._again('it')}") from error
            if not found.equals(schema):
                raise UserError(f"{path} has other columns than these scores; {self._again('it')}")
            if len(table) > most or (known is not None and len(table) < most):
                raise UserError(
                    f"{path} has {len(table)} rows, expected {most}; {self._again('it')}"
                )
            yield archive, table

    def _again(self, part: str) -> str:
        """The way out for a part that is of no use."""
        names = [part] if part else []
        names += [SUMMARY_FILE] if (self.path / SUMMARY_FILE).is_file() else []
        return f"delete {' and '.join(names)}, and the same serve score command makes it again"

    def _part(self, archive: int, unit: int) -> Path:
        return self.parts / f"part-{archive:05d}-{unit:06d}.parquet"

    def _units(self) -> dict[tuple[int, int], Path]:
        """(archive, unit) -> its part, in the order of the rows."""
        found = {}
        for path in self.parts.glob("part-*.parquet"):
            numbers = _PART.fullmatch(path.name)
            unit = (int(numbers[1]), int(numbers[2])) if numbers else None
            if unit is None or path != self._part(*unit):
                raise UserError(f"{path} is none of these scores; remove it")
            found[unit] = path
        return dict(sorted(found.items()))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _commit(path: Path, data: bytes) -> None:
    write_atomic(path, data)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the renaming itself
    finally:
        os.close(folder)
