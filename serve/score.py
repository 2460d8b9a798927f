"""Archives -> scores: every image exactly once, whatever happens on the way.

Reading (this process) -> decoding and preparing (worker processes) -> batches of one fixed size
through ONNX Runtime (this process, while the workers decode on) -> rows. The unit of work is 512
consecutive inputs of an archive; its rows are committed as one file, and the same command after a
crash leaves out the units that are there. Batches never reach over two units, so a unit's scores do
not depend on where a run was interrupted. Needs no torch.

Run: python -m serve score --model MODEL.onnx --out DIR ARCHIVE...
"""

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import tyro

from serve.archives import Archive, find_archives, identify
from serve.decode import Decoded, DecodePool, Task
from serve.entries import label
from serve.model_info import ModelInfo
from serve.providers import Provider, create_session, probabilities, provider_of, read_model_info
from serve.score_folder import Columns, Row, ScoreFolder
from serve.units import UNIT_INPUTS, Chunk, archive_chunks
from shards.console import RunFailed, UserError, progress


@dataclass(frozen=True)
class ScoreConfig:
    """Score the images of archives: one row per image in a folder of Parquet files."""

    model: Path
    """ONNX file of python -m serve export."""
    out: Path
    """Folder of the scores; the same command again goes on where it stopped."""
    archives: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Tar (shards too), tar.gz, zip, folders (with the archives in them), single images."""
    provider: Provider = "auto"
    """Where the network runs; auto: on a GPU where CUDA works, else on the CPU."""
    batch: int = 32
    """Images per pass; the last pass is padded to it."""
    workers: int | None = None
    """Decoding processes; by default one per core."""
    threads: int | None = None
    """Threads of ONNX Runtime on the CPU; by default one per core."""
    limit: int | None = None
    """Score only the first so many images; by default all."""


@dataclass(frozen=True)
class ScoreSummary:
    """rows: inputs in the folder, errors among them; scored: images that this call scored, in
    `seconds`; already_done: the folder was finished before."""

    out: Path
    rows: int
    errors: int
    scored: int
    seconds: float
    img_s: float
    provider: str
    already_done: bool


def score(config: ScoreConfig) -> ScoreSummary:
    """Score the archives into `config.out`, or go on where an earlier call stopped.

    UserError for a wrong request; RunFailed when an archive could not be read to its end (its
    readable images are scored and committed all the same).
    """
    _check(config)
    archives = find_archives(config.archives)
    cores = len(os.sched_getaffinity(0))
    session = create_session(config.model, config.provider, config.threads or cores)
    info = read_model_info(session, str(config.model))
    model_sha256 = _sha256(config.model)
    folder = ScoreFolder(config.out)
    with folder.locked():
        request = _request(config, archives, info, model_sha256)
        folder.begin(request)
        done = folder.summary()
        if done is None:
            columns = Columns(info.labels, info.exclusive, model_sha256, info.preprocessing_version)
            run = _Run(config, archives, folder, session, info, columns)
            scored, seconds = run.run(config.workers or cores)
            done = _summarise(folder, run, request, provider_of(session), scored, seconds)
            folder.write_summary(done)
            summary = _summary(config.out, done, scored, already_done=False)
        else:
            summary = _summary(config.out, done, 0, already_done=True)
    _fail_on_damage(done)
    return summary


def _check(config: ScoreConfig) -> None:
    for name in ("batch", "workers", "threads", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, found {value}")
    if config.batch > UNIT_INPUTS:
        raise UserError(f"batch must be at most {UNIT_INPUTS}, found {config.batch}")
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file; --out names a folder")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _request(
    config: ScoreConfig, archives: list[Archive], info: ModelInfo, model_sha256: str
) -> dict[str, Any]:
    """What decides the rows. Workers and threads do not, so a rerun may change them."""
    return {
        "model_sha256": model_sha256,
        "labels": list(info.labels),
        "preprocessing_version": info.preprocessing_version,
        "provider": config.provider,
        "batch": config.batch,
        "unit_inputs": UNIT_INPUTS,
        "limit": config.limit,
        "archives": [identify(archive).to_dict() for archive in archives],
    }


class _Run:
    """One call's work: the tasks that are left, and their way to committed rows."""

    def __init__(
        self,
        config: ScoreConfig,
        archives: list[Archive],
        folder: ScoreFolder,
        session: onnxruntime.InferenceSession,
        info: ModelInfo,
        columns: Columns,
    ) -> None:
        self.config, self.archives, self.folder = config, archives, folder
        self.session, self.info, self.columns = session, info, columns
        self.names = archive_names([archive.path for archive in archives])

    def run(self, workers: int) -> tuple[int, float]:
        """(images scored, seconds)."""
        started, scored = time.perf_counter(), 0
        unit = _Unit(self.session, self.config.batch, len(self.info.labels))
        shown = progress("scoring", None, shown=sys.stderr.isatty())
        with DecodePool(workers, self.info.shorter_side, self.info.size) as pool, shown as advance:
            for (archive, chunk), decoded in pool.run(self._tasks()):
                unit.add(chunk, decoded)
                scored += decoded.errors.count(None)
                rate = scored / (time.perf_counter() - started)
                advance(len(chunk.inputs), f"{rate:.0f} img/s")
                self._commit(archive, chunk, unit)
        return scored, time.perf_counter() - started

    def _tasks(self) -> Iterator[Task[tuple[int, Chunk]]]:
        finished = self.folder.finished_units()
        left = self.config.limit
        for index, archive in enumerate(self.archives):
            end = self.folder.end_of(index)
            if end is None:
                units = {unit for of_archive, unit in finished if of_archive == index}
                for chunk in archive_chunks(archive, units, left):
                    yield Task((index, chunk), chunk.images())
                    end = chunk.end
            if left is not None and end is not None:
                left -= end.inputs

    def _commit(self, archive: int, chunk: Chunk, unit: "_Unit") -> None:
        if chunk.closes_unit:
            table = self.columns.table(unit.take_rows(self.names[archive]))
            self.folder.write_unit(archive, chunk.unit, table)
        if chunk.end is not None:
            self.folder.write_end(archive, chunk.end)


class _Unit:
    """The unit that is being scored: its inputs in order, and the images that wait for a batch."""

    def __init__(self, session: onnxruntime.InferenceSession, batch: int, labels: int) -> None:
        self.session, self.batch, self.labels = session, batch, labels
        self.inputs: list[tuple[str, str, str | None]] = []  # member, key, error
        self.scores: list[np.ndarray] = []
        self.waiting: list[np.ndarray] = []

    def add(self, chunk: Chunk, decoded: Decoded) -> None:
        """Take in a chunk's inputs, and score every batch that is full."""
        outcomes = iter(decoded.errors)
        for item in chunk.inputs:
            error = item.error if item.data is None else next(outcomes)
            self.inputs.append((item.member, item.key, error))
        pairs = zip(decoded.images, decoded.errors)
        self.waiting.extend(image for image, error in pairs if error is None)
        while len(self.waiting) >= self.batch:
            self._score(self.waiting[: self.batch])
            del self.waiting[: self.batch]

    def take_rows(self, archive: str) -> list[Row]:
        """The unit's rows; then it is empty, for the next one."""
        if self.waiting:
            self._score(self.waiting)
        scores = (row for part in self.scores for row in part)
        rows = [
            _row(archive, member, key, next(scores) if error is None else None, error)
            for member, key, error in self.inputs
        ]
        self.inputs, self.scores, self.waiting = [], [], []
        return rows

    def _score(self, images: list[np.ndarray]) -> None:
        padded = np.zeros((self.batch, 1, *images[0].shape), np.uint8)
        padded[: len(images), 0] = images
        try:
            found = probabilities(self.session, padded)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise RunFailed(f"the network does not run: {error}") from error
        if found.shape != (self.batch, self.labels):
            raise RunFailed(f"the network gave {found.shape}, not {(self.batch, self.labels)}")
        self.scores.append(found[: len(images)])


def _row(archive: str, member: str, key: str, scores: np.ndarray | None, error: str | None) -> Row:
    if scores is not None and not np.isfinite(scores).all():
        return Row(archive, member, key, None, "the network's output is not a finite number")
    return Row(archive, member, key, scores, error)


def archive_names(paths: list[Path]) -> list[str]:
    """What the rows call the archives: the file's name, the whole path where names repeat."""
    counts = Counter(path.name for path in paths)
    unique = [bool(path.name) and counts[path.name] == 1 for path in paths]
    return [label(path.name if alone else str(path)) for path, alone in zip(paths, unique)]


def _summarise(
    folder: ScoreFolder,
    run: _Run,
    request: dict[str, Any],
    provider: str,
    scored: int,
    seconds: float,
) -> dict[str, Any]:
    """The content of scores.json, counted from what is committed.

    RunFailed when a row is missing.
    """
    archives = []
    for index, (name, identity) in enumerate(zip(run.names, request["archives"])):
        rows, errors = folder.count(index)
        end = folder.end_of(index)
        if end is None or end.inputs != rows:
            raise RunFailed(f"{name}: {rows} rows for {end}; delete {folder.path} and score again")
        members = end.inputs - (end.damage is not None)
        entry = {"name": name, "bytes": identity["bytes"], "sha256": identity["sha256"]}
        counts = {"members": members, "rows": rows, "errors": errors, "skipped": end.skipped}
        archives.append({**entry, **counts, "damage": end.damage})
    total = sum(archive["rows"] for archive in archives)
    if total == 0:
        raise UserError(f"no image in {', '.join(run.names)}")
    return {
        "model": run.config.model.name,
        "model_sha256": request["model_sha256"],
        "labels": list(run.info.labels),
        "exclusive": run.info.exclusive,
        "dataset": run.info.dataset,
        "preprocessing_version": run.info.preprocessing_version,
        "archives": archives,
        "rows": total,
        "errors": sum(archive["errors"] for archive in archives),
        "limit": run.config.limit,
        "seconds": round(seconds, 3),
        "img_s": round(scored / max(seconds, 1e-9), 2),
        "provider": provider,
        "synthetic": run.info.synthetic,
    }


def _summary(out: Path, done: dict[str, Any], scored: int, *, already_done: bool) -> ScoreSummary:
    return ScoreSummary(
        out=out,
        rows=done["rows"],
        errors=done["errors"],
        scored=scored,
        seconds=done["seconds"],
        img_s=done["img_s"],
        provider=done["provider"],
        already_done=already_done,
    )


def _fail_on_damage(done: dict[str, Any]) -> None:
    damaged = [f"{a['name']}: {a['damage']}" for a in done["archives"] if a["damage"]]
    if damaged:
        raise RunFailed(
            f"{'; '.join(damaged)}; what could be read is scored ({done['rows']} rows); fetch the "
            "archive again and score it into another --out"
        )
