"""One process's work: the units that are left, and their way to committed rows."""

import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from serve.archives import Archive
from serve.decode import Decoded, DecodePool, Task
from serve.dry_run import expected_inputs
from serve.identity import identify
from serve.network import Network
from serve.score_folder import Columns, Row, ScoreFolder, unit_count
from serve.units import CHUNK_INPUTS, Chunk, archive_chunks
from shards.console import RunFailed, progress

Tag = tuple[int, Chunk]  # number of the archive


@dataclass(frozen=True)
class Scored:
    """errors: of each image of a chunk; scores: (those without one, L) float32."""

    errors: list[str | None]
    scores: np.ndarray


@dataclass(frozen=True)
class Share:
    """The part of process `index` of `count`: every `count`-th unit; whole: every `count`-th
    archive, so that no process walks through the headers of what others score."""

    index: int = 0
    count: int = 1
    whole: bool = False

    def has(self, archive: int, unit: int = 0) -> bool:
        # With the archive's number, or the first process had all archives of one unit.
        return (archive + (0 if self.whole else unit)) % self.count == self.index


def shares_of(count: int, archives: int, limit: int | None) -> list[Share]:
    """The parts of so many processes. Of at least 8 archives for each, whole ones: then the last
    are soon done. Not with a limit, which counts across archives, so that all have to be read."""
    whole = limit is None and archives >= 8 * count
    return [Share(index, count, whole) for index in range(count)]


@dataclass(frozen=True)
class Work:
    """What is to be scored. names: what the rows call the archives; identities: of the request,
    which the archives must still have when they were read; committed: rows that are there
    already."""

    archives: list[Archive]
    names: list[str]
    identities: list[dict[str, str | int]]
    folder: ScoreFolder
    columns: Columns
    limit: int | None
    keep_names: bool
    committed: int = 0

    def tasks(
        self, share: Share, most: int = CHUNK_INPUTS, *, in_place: bool = False
    ) -> Iterator[Task[Tag]]:
        """The chunks of this share that are not committed yet. in_place: see archive_chunks."""
        finished: defaultdict[int, set[int]] = defaultdict(set)
        for index, unit in self.folder.finished_units():
            finished[index].add(unit)
        left = self.limit
        for index, archive in enumerate(self.archives):
            if share.whole and not share.has(index):
                continue
            end, done = self.folder.end_of(index), finished[index]
            if end is None or not done.issuperset(range(unit_count(end.inputs))):
                chunks = archive_chunks(
                    archive,
                    partial(_skips, done, share, index),
                    left,
                    keep_names=self.keep_names,
                    most=most,
                    in_place=in_place,
                )
                for chunk in chunks:
                    yield Task((index, chunk), chunk.images())
                    end = chunk.end
            if left is not None and end is not None:
                left -= end.inputs

    def commit(self, archive: int, chunk: Chunk, unit: "Unit", share: Share) -> None:
        """Write what the chunk completes. RunFailed when the archive changed while it was read."""
        if chunk.closes_unit:
            table = self.columns.table(unit.rows(self.names[archive]))
            self.folder.write_unit(archive, chunk.unit, table)
        if chunk.end is not None:
            if identify(self.archives[archive]).to_dict() != self.identities[archive]:
                raise RunFailed(
                    f"{self.archives[archive].called} changed while it was read; score it again "
                    "into another --out"
                )
            if share.has(archive):  # others may read it to its end, but one name has one writer
                self.folder.write_end(archive, chunk.end)

    def expected(self, share: Share) -> int | None:
        """About how many inputs are left for a share, None where that is not cheaply known."""
        counts = [expected_inputs(archive) for archive in self.archives]
        known = [count for count in counts if count is not None]
        total = sum(known) if len(known) == len(counts) else self.limit
        if total is None:
            return None
        total = total if self.limit is None else min(total, self.limit)
        return max(0, total - self.committed) // share.count


def _skips(done: set[int], share: Share, archive: int, unit: int) -> bool:
    return unit in done or not share.has(archive, unit)


class Unit:
    """A unit on its way to rows: its inputs in order, the images that wait for a batch, and the
    batches that were given to the network.

    Batches never reach over two units, so that a unit's scores do not depend on where a run was
    interrupted."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inputs: list[tuple[str, str, str | None]] = []  # member, key, error
        self.batches: list[Future[np.ndarray]] = []
        self.waiting: list[np.ndarray] = []

    def add(self, chunk: Chunk, found: Decoded | Scored) -> None:
        """Take in a chunk's inputs, and begin every batch that is full; at the end of the unit also
        the one that is not."""
        outcomes = iter(found.errors)
        for item in chunk.inputs:
            error = item.error if item.data is None else next(outcomes)
            self.inputs.append((item.member, item.key, error))
        if isinstance(found, Scored):
            done: Future[np.ndarray] = Future()
            done.set_result(found.scores)
            self.batches.append(done)
            return
        pairs = zip(found.images, found.errors)
        self.waiting.extend(image for image, error in pairs if error is None)
        batch = self.network.batch
        while len(self.waiting) >= batch or (self.waiting and chunk.closes_unit):
            self.batches.append(self.network.submit(self.waiting[:batch]))
            del self.waiting[:batch]

    @property
    def scored(self) -> bool:
        """Whether nothing given to the network is under way."""
        return all(batch.done() for batch in self.batches)

    def rows(self, archive: str) -> list[Row]:
        """The rows of a unit that is complete, once they are scored."""
        scores = (row for batch in self.batches for row in batch.result())
        return [
            _row(archive, member, key, next(scores) if error is None else None, error)
            for member, key, error in self.inputs
        ]


def _row(archive: str, member: str, key: str, scores: np.ndarray | None, error: str | None) -> Row:
    if scores is not None and not np.isfinite(scores).all():
        return Row(archive, member, key, None, "the network's output is not a finite number")
    return Row(archive, member, key, scores, error)


def run_here(work: Work, network: Network, workers: int, share: Share = Share()) -> None:
    """Decode in `workers` processes and score in this one, at the same time."""
    info = network.info
    with DecodePool(workers, info.shorter_side, info.size, info.depth) as pool:
        most = max(CHUNK_INPUTS, network.batch)
        take_in(work, network, pool.run(work.tasks(share, most, in_place=True)), share)


def take_in(
    work: Work,
    network: Network,
    found: Iterator[tuple[Tag, Decoded | Scored]],
    share: Share = Share(),
) -> None:
    """Score the chunks as they come, and commit the units in their order. The next unit begins
    while the last batches of the one before are scored."""
    shown = share.index == 0 and sys.stderr.isatty()
    of = f" on one of {share.count} GPUs" if share.count > 1 else ""  # each counts its own share
    started, inputs = time.perf_counter(), 0
    unit = Unit(network)
    complete: deque[tuple[int, Chunk, Unit]] = deque()
    with progress("scoring", work.expected(share) if shown else None, shown=shown) as advance:
        try:
            for (archive, chunk), outcome in found:
                unit.add(chunk, outcome)
                if chunk.closes_unit or chunk.end is not None:
                    complete.append((archive, chunk, unit))
                    unit = Unit(network)
                while complete and complete[0][2].scored:
                    work.commit(*complete.popleft(), share)
                inputs += len(chunk.inputs)
                rate = inputs / (time.perf_counter() - started)
                advance(len(chunk.inputs), f"{rate:.0f} img/s{of}")
        except RunFailed:  # of a server that fails, say: what is complete is not lost with the rest
            _commit_all(work, complete, share)
            raise
        _commit_all(work, complete, share)


def _commit_all(work: Work, complete: "deque[tuple[int, Chunk, Unit]]", share: Share) -> None:
    while complete:
        work.commit(*complete.popleft(), share)
