"""The labels that scores are judged by: a data set's folder of shards, or a CSV or Parquet file
with a `key` column and one column of 1, 0, -1 or nothing per label, or one column `label` with the
name of each image's class.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve.tables import META_COLUMNS, Table, read_table
from shards.console import UserError
from shards.labels import UNKNOWN, YES
from shards.manifest import Manifest, check_shards, load_manifest, shard_path
from shards.reader import read_component, read_index
from shards.sample import LABELS_EXTENSION, META_EXTENSION, SampleMeta
from shards.splits import named


@dataclass(frozen=True)
class LabelTable:
    """labels: (N, L) int8, 1 yes, 0 no, -1 unknown; patients: None where not known; meta: of
    META_COLUMNS those that are known, name -> N values; exclusive: exactly one label holds;
    synthetic: of each image, None where not known."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    patients: tuple[str | None, ...] | None
    meta: dict[str, tuple[str | None, ...]]
    exclusive: bool
    synthetic: tuple[bool | None, ...] | None = None


def read_label_table(
    path: Path, split: str | None = None, classes: Collection[str] = ()
) -> LabelTable:
    """Labels of a data set's folder of shards (one split, or all), or of a CSV or Parquet file.
    classes: of the scores, which may be words for missing elsewhere, as `None`.

    A table is taken as exclusive when each of its rows has exactly one yes and nothing unknown
    among several labels, or when it names each row's class in one column. UserError when it cannot
    be read.
    """
    if path.is_dir():
        return _labels_of_shards(path, load_manifest(path), split)
    given = read_table(path)
    table = given.spread_classes(classes)
    chosen = np.ones(table.rows, bool)
    if split is not None:
        chosen = _rows_of_split(table, split)
    names = tuple(table.label_names(table.columns.keys() - given.columns.keys()))
    labels = np.stack([table.labels(name) for name in names], axis=1)[chosen]
    meta = {name: _chosen(table.texts(name), chosen) for name in META_COLUMNS}
    one_hot = ((labels == YES).sum(axis=1) == 1) & (labels != UNKNOWN).all(axis=1)
    one_class_each = table is not given or bool(one_hot.all())
    return LabelTable(
        keys=tuple(key for key, take in zip(table.keys(), chosen) if take),
        names=names,
        labels=labels,
        patients=_chosen(table.patients(), chosen),
        meta={name: values for name, values in meta.items() if values is not None},
        exclusive=one_class_each and (len(names) > 1 or table is not given),
    )


def _rows_of_split(table: Table, split: str) -> np.ndarray:
    splits = table.texts("split") or []
    there = sorted({found for found in splits if found is not None})
    chosen = named(split, there, table.path)
    if not chosen:
        have = ", ".join(there) if splits else "no column 'split'"
        raise UserError(f"no split {split!r} in {table.path}; it has: {have}")
    return np.array([found in chosen for found in splits], bool)


def _chosen(values: list[str | None] | None, chosen: np.ndarray) -> tuple[str | None, ...] | None:
    return None if values is None else tuple(v for v, take in zip(values, chosen) if take)


def _labels_of_shards(folder: Path, manifest: Manifest, split: str | None) -> LabelTable:
    splits = [split] if split is not None else list(manifest.splits)
    samples = [found for name in splits for found in _samples_of_split(folder, manifest, name)]
    metas = [meta for _, _, meta in samples]
    meta = {name: tuple(_text(getattr(found, name)) for found in metas) for name in META_COLUMNS}
    patients = tuple(found.patient for found in metas)
    labels = [row for _, row, _ in samples]
    return LabelTable(
        keys=tuple(key for key, _, _ in samples),
        names=manifest.labels,
        labels=np.stack(labels) if labels else np.empty((0, len(manifest.labels)), np.int8),
        patients=patients if any(patient is not None for patient in patients) else None,
        meta={name: values for name, values in meta.items() if any(v is not None for v in values)},
        exclusive=manifest.exclusive,
        synthetic=tuple(manifest.is_synthetic(found.source) for found in metas),
    )


def _samples_of_split(
    folder: Path, manifest: Manifest, split: str
) -> Iterator[tuple[str, np.ndarray, SampleMeta]]:
    """(key, labels (L,) int8, metadata) of every sample, without reading any image."""
    check_shards(folder, manifest, (split,))
    for shard in manifest.of_split(split):
        path = shard_path(folder, shard)
        with path.open("rb") as file:
            for components in read_index(path):
                found = {c.extension: c for c in components}
                if not {LABELS_EXTENSION, META_EXTENSION} <= set(found):
                    raise UserError(
                        f"{path}: sample {components[0].key} lacks labels; ingest again"
                    )
                labels = read_component(file.fileno(), found[LABELS_EXTENSION], path)
                meta = read_component(file.fileno(), found[META_EXTENSION], path)
                yield components[0].key, np.frombuffer(labels, np.int8), SampleMeta.from_json(meta)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
