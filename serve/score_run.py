"""One process's work: the units that are left, and their way to committed rows."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from serve.archives import Archive, identify
from serve.decode import Decoded, DecodePool, Task
from serve.dry_run import expected_inputs
from serve.network import Network
from serve.score_folder import Columns, Row, ScoreFolder
from serve.units import CHUNK_INPUTS, UNIT_INPUTS, Chunk, archive_chunks, unit_count
from shards.console import RunFailed, progress

# The decoders stand back for the network's threads, which wait for each other after every layer.
NICE = 10
Tag = tuple[int, Chunk]  # number of the archive


@dataclass(frozen=True)
class Scored:
    """errors: of each image of a chunk; scores: (those without one, L) float32."""

    errors: list[str | None]
    scores: np.ndarray


@dataclass(frozen=True)
class Share:
    """Of the units those whose number gives `index` modulo `count`."""

    index: int = 0
    count: int = 1

    def has(self, unit: int) -> bool:
        return unit % self.count == self.index


@dataclass(frozen=True)
class Work:
    """What is to be scored. names: what the rows call the archives; identities: of the request,
    which the archives must still have when they were read."""

    archives: list[Archive]
    names: list[str]
    identities: list[dict[str, str | int]]
    folder: ScoreFolder
    columns: Columns
    limit: int | None
    keep_names: bool

    def tasks(self, share: Share, most: int = CHUNK_INPUTS) -> Iterator[Task[Tag]]:
        """The chunks of this share that are not committed yet."""
        finished = self.folder.finished_units()
        left = self.limit
        for index, archive in enumerate(self.archives):
            end = self.folder.end_of(index)
            done = {unit for of_archive, unit in finished if of_archive == index}
            if end is None or not done.issuperset(range(unit_count(end.inputs))):
                chunks = archive_chunks(
                    archive,
                    partial(_skips, done, share),
                    left,
                    keep_names=self.keep_names,
                    most=most,
                )
                for chunk in chunks:
                    yield Task((index, chunk), chunk.images())
                    end = chunk.end
            if left is not None and end is not None:
                left -= end.inputs

    def commit(self, archive: int, chunk: Chunk, unit: "Unit") -> None:
        """Write what the chunk completes. RunFailed when the archive changed while it was read."""
        if chunk.closes_unit:
            table = self.columns.table(unit.take_rows(self.names[archive]))
            self.folder.write_unit(archive, chunk.unit, table)
        if chunk.end is not None:
            if identify(self.archives[archive]).to_dict() != self.identities[archive]:
                raise RunFailed(
                    f"{self.archives[archive].path} changed while it was read; score it again "
                    "into another --out"
                )
            self.folder.write_end(archive, chunk.end)

    def expected(self) -> int | None:
        """About how many inputs are left, None where that is not cheaply known."""
        counts = [expected_inputs(archive) for archive in self.archives]
        if any(count is None for count in counts):
            return None if self.limit is None else self.limit
        total = sum(count or 0 for count in counts)
        total = total if self.limit is None else min(total, self.limit)
        return max(0, total - UNIT_INPUTS * len(self.folder.finished_units()))


def _skips(done: set[int], share: Share, unit: int) -> bool:
    return unit in done or not share.has(unit)


class Unit:
    """The unit that is being scored: its inputs in order, and the images that wait for a batch.

    Batches never reach over two units, so that a unit's scores do not depend on where a run was
    interrupted."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inputs: list[tuple[str, str, str | None]] = []  # member, key, error
        self.scores: list[np.ndarray] = []
        self.waiting: list[np.ndarray] = []

    def add(self, chunk: Chunk, found: Decoded | Scored) -> None:
        """Take in a chunk's inputs, and score every batch that is full."""
        outcomes = iter(found.errors)
        for item in chunk.inputs:
            error = item.error if item.data is None else next(outcomes)
            self.inputs.append((item.member, item.key, error))
        if isinstance(found, Scored):
            self.scores.append(found.scores)
            return
        pairs = zip(found.images, found.errors)
        self.waiting.extend(image for image, error in pairs if error is None)
        while len(self.waiting) >= self.network.batch:
            self.scores.append(self.network.score(self.waiting[: self.network.batch]))
            del self.waiting[: self.network.batch]

    def take_rows(self, archive: str) -> list[Row]:
        """The unit's rows; then it is empty, for the next one."""
        if self.waiting:
            self.scores.append(self.network.score(self.waiting))
        scores = (row for part in self.scores for row in part)
        rows = [
            _row(archive, member, key, next(scores) if error is None else None, error)
            for member, key, error in self.inputs
        ]
        self.inputs, self.scores, self.waiting = [], [], []
        return rows


def _row(archive: str, member: str, key: str, scores: np.ndarray | None, error: str | None) -> Row:
    if scores is not None and not np.isfinite(scores).all():
        return Row(archive, member, key, None, "the network's output is not a finite number")
    return Row(archive, member, key, scores, error)


def run_here(work: Work, network: Network, workers: int, share: Share = Share()) -> None:
    """Decode in `workers` processes and score in this one, at the same time."""
    info = network.info
    with DecodePool(workers, info.shorter_side, info.size, nice=NICE) as pool:
        take_in(work, Unit(network), pool.run(work.tasks(share)), shown=share.index == 0)


def take_in(
    work: Work, unit: Unit, found: Iterator[tuple[Tag, Decoded | Scored]], *, shown: bool = True
) -> None:
    """Commit the chunks as they come, in their order."""
    shown = shown and sys.stderr.isatty()
    started, inputs = time.perf_counter(), 0
    with progress("scoring", work.expected() if shown else None, shown=shown) as advance:
        for (archive, chunk), outcome in found:
            unit.add(chunk, outcome)
            inputs += len(chunk.inputs)
            advance(len(chunk.inputs), f"{inputs / (time.perf_counter() - started):.0f} img/s")
            work.commit(archive, chunk, unit)
