"""Finished data sets read back: their samples as records, and their images out of the shards."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingest.choice import Kept
from ingest.record import Record
from ingest.spool import Entry
from ingest.tables import SAMPLES, read_rows
from shards.console import Advance, UserError
from shards.index import Component
from shards.labels import UNKNOWN, Vocabulary
from shards.manifest import Manifest, load_manifest, shard_path
from shards.reader import read_component, read_index
from shards.sample import SampleMeta
from shards.verify import RETRIED, retried, verify_dataset


class Finished:
    """Several finished data sets; an Entry's `chunk` is the number of its shard among them all."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """UserError when a folder is no finished data set."""
        self.folders = tuple(folders)
        self.manifests = tuple(load_manifest(folder) for folder in folders)
        self._shards: list[Path] = []

    @property
    def samples(self) -> int:
        """Of all data sets together."""
        return sum(shard.samples for m in self.manifests for shard in m.shards)

    def load(self, advance: Advance, *, tables: bool = True) -> list[list[Kept]]:
        """The samples of each data set, in the order of its shards, after every byte was compared
        with the manifests (without `tables`, of the shards). UserError when one is damaged."""
        self._shards = []
        return [
            self._load(folder, manifest, advance, tables)
            for folder, manifest in zip(self.folders, self.manifests)
        ]

    def read(self, entry: Entry) -> bytes:
        """The encoded image of an entry; only after load()."""
        with self._shards[entry.chunk].open("rb") as file:
            return os.pread(file.fileno(), entry.size, entry.offset)

    def _load(self, folder: Path, manifest: Manifest, advance: Advance, tables: bool) -> list[Kept]:
        problems = verify_dataset(folder, advance, tables=tables)
        if problems:
            way = f"{RETRIED} in it; else ingest" if tables and retried(folder) else "ingest"
            raise UserError(f"{folder} is damaged: {problems[0]}; {way} it again")
        rows = _rows(folder)
        samples = []
        for shard in manifest.shards:
            path = shard_path(folder, shard)
            with path.open("rb") as file:
                for parts in read_index(path):
                    image, labels, meta = parts
                    encoded = np.frombuffer(read_component(file.fileno(), labels, path), np.int8)
                    known = SampleMeta.from_json(read_component(file.fileno(), meta, path))
                    record = _record(image.key, encoded, known, manifest.vocabulary)
                    entry = _entry(image, known, _row(rows, image.key, folder), len(self._shards))
                    samples.append(Kept(record, entry, known.source, shard.split))
            self._shards.append(path)
        return samples


def _record(key: str, labels: np.ndarray, meta: SampleMeta, vocabulary: Vocabulary) -> Record:
    return Record(
        location=meta.file,
        key=key,
        labels=vocabulary.decode(labels),
        patient=meta.patient,
        view=meta.view,
        age=meta.age,
        sex=meta.sex,
        boxes=meta.boxes,
        unknown=tuple(name for name, v in zip(vocabulary.names, labels) if v == UNKNOWN),
    )


def _entry(image: Component, meta: SampleMeta, row: dict[str, Any], chunk: int) -> Entry:
    return Entry(
        location=meta.file,
        stamp="",
        sha256=meta.sha256,
        chunk=chunk,
        offset=image.offset,
        size=image.size,
        extension=image.extension,
        width=meta.width,
        height=meta.height,
        pixel_sha256=row["pixel_sha256"],
        near_hash=row["near_hash"],
    )


def _rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in read_rows(folder / SAMPLES)}


def _row(rows: dict[str, dict[str, Any]], key: str, folder: Path) -> dict[str, Any]:
    row = rows.get(key, {})
    if not {"pixel_sha256", "near_hash"} <= row.keys():
        raise UserError(
            f"{folder / SAMPLES} has no hashes of sample {key}; it is missing or of another "
            "version: ingest the data set again"
        )
    return row
