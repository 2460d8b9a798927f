"""Scores and the labels they are judged by, brought together by key.

Scores: a folder of `serve score`, or a CSV or Parquet file with a `key` column and one column
`<label>` or `prob_<label>` per label. Labels: a data set's folder of shards, or a CSV or Parquet
file with a `key` column and one column of 1, 0, -1 or nothing per label, or one column `label`
with the name of each image's class.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from serve.score_folder import PROBABILITY_PREFIX, ScoreFolder
from serve.tables import KEY, Table, read_table
from shards.console import UserError
from shards.labels import NO, UNKNOWN, YES
from shards.manifest import Manifest, check_shards, load_manifest, shard_path
from shards.reader import read_component, read_index
from shards.sample import LABELS_EXTENSION, META_EXTENSION, SampleMeta

ROW_SUM = 1e-3  # probabilities of softmax add up to 1 within this
META_COLUMNS = ("view", "sex", "age", "source")
# Columns of our own and of common tables that are no label.
_NO_LABEL = {KEY, "archive", "member", "predicted", "model_sha256", "preprocessing_version"} | {
    *("error", "patient", "split", "file", "width", "height", "dataset", "shard", "labels"),
    *("sha256", "pixel_sha256"),
    *("", "unnamed: 0", "__index_level_0__"),  # row numbers, as pandas writes them
    *META_COLUMNS,
}


@dataclass(frozen=True)
class ScoredBy:
    """The model file that gave scores, by name and hash. weights_sha256: of the trained weights in
    it; precision: of the export; None where it does not say."""

    file: str
    sha256: str
    weights_sha256: str | None
    precision: str | None


@dataclass(frozen=True)
class PredictionTable:
    """probabilities: (N, L) float64, NaN in a row with an error; exclusive, synthetic: None where
    not known; damaged: archives whose rest could not be read, with the reason; scored_by: None of a
    table."""

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: np.ndarray
    errors: tuple[str | None, ...]
    exclusive: bool | None = None
    synthetic: bool | None = None
    damaged: tuple[str, ...] = ()
    scored_by: ScoredBy | None = None

    @property
    def adds_up(self) -> bool:
        """Whether the probabilities of every image that has them all add up to 1."""
        sums = self.probabilities[[error is None for error in self.errors]].sum(axis=1)
        sums = sums[~np.isnan(sums)]
        return bool(sums.size and (np.abs(sums - 1) < ROW_SUM).all())


@dataclass(frozen=True)
class LabelTable:
    """labels: (N, L) int8, 1 yes, 0 no, -1 unknown; patients: None where not known; meta: of
    META_COLUMNS those that are known, name -> N values; exclusive: exactly one label holds."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    patients: tuple[str | None, ...] | None
    meta: dict[str, tuple[str | None, ...]]
    exclusive: bool
    synthetic: bool | None = None


@dataclass(frozen=True)
class Joined:
    """Scores and labels of the same N images, in the order of the predictions.

    labels: the L names that both sides have. targets: (N, L) int8; probabilities: (N, L) float64, a
    row of NaN where an image could not be scored. Left out and named: keys and labels that only one
    side has.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    exclusive: bool
    targets: np.ndarray
    probabilities: np.ndarray
    patients: tuple[str | None, ...] | None
    meta: dict[str, tuple[str | None, ...]]
    synthetic: bool
    unmatched_predictions: tuple[str, ...] = ()
    unmatched_labels: tuple[str, ...] = ()
    labels_without_truth: tuple[str, ...] = ()
    labels_without_scores: tuple[str, ...] = ()
    damaged: tuple[str, ...] = field(default=())
    scored_by: ScoredBy | None = None


def read_predictions(path: Path) -> PredictionTable:
    """Read a folder of scores, a CSV or a Parquet file. UserError when it is none of them."""
    if path.is_dir():
        return _predictions_of_folder(ScoreFolder(path))
    table = read_table(path)
    columns = _probability_columns(table)
    probabilities = np.stack([table.numbers(column) for column in columns.values()], axis=1)
    _check_probabilities(path, tuple(columns), probabilities)
    return PredictionTable(
        tuple(table.keys()), tuple(columns), probabilities, _errors(table, probabilities)
    )


def _predictions_of_folder(folder: ScoreFolder) -> PredictionTable:
    summary = folder.summary()
    rows = folder.read()  # UserError when the folder is not finished
    assert summary is not None
    rows = rows.filter(np.array(rows.column("member").to_pylist()) != "")
    names = tuple(summary["labels"])
    columns = [rows.column(PROBABILITY_PREFIX + name).to_numpy() for name in names]
    return PredictionTable(
        keys=tuple(rows.column(KEY).to_pylist()),
        labels=names,
        probabilities=np.stack(columns, axis=1).astype(np.float64),
        errors=tuple(rows.column("error").to_pylist()),
        exclusive=summary["exclusive"],
        synthetic=summary["synthetic"],
        damaged=tuple(f"{a['name']}: {a['damage']}" for a in summary["archives"] if a["damage"]),
        scored_by=ScoredBy(
            summary["model"],
            summary["model_sha256"],
            summary.get("weights_sha256"),
            summary.get("precision"),
        ),
    )


def _probability_columns(table: Table) -> dict[str, str]:
    """label -> column. Where some columns are called prob_<label>, only those count."""
    prefixed = [name for name in table.columns if name.startswith(PROBABILITY_PREFIX)]
    if prefixed:
        return {name.removeprefix(PROBABILITY_PREFIX): name for name in prefixed}
    return {name: name for name in _label_columns(table)}


def _label_columns(table: Table) -> list[str]:
    names = [name for name in table.columns if name.lower() not in _NO_LABEL]
    if not names:
        raise UserError(
            f"{table.path} has no column for a label; it has: {', '.join(table.columns)}"
        )
    return names


def _check_probabilities(path: Path, labels: tuple[str, ...], values: np.ndarray) -> None:
    bad = np.argwhere((values < 0) | (values > 1))
    if bad.size:
        row, column = bad[0]
        raise UserError(
            f"{path}: row {row + 1}, label {labels[column]!r}: a probability is from 0 to 1, "
            f"found {values[row, column]:g}"
        )


def _errors(table: Table, probabilities: np.ndarray) -> tuple[str | None, ...]:
    told = table.texts("error") or [None] * table.rows
    missing = np.isnan(probabilities).all(axis=1)
    return tuple(error or ("no score" if gap else None) for error, gap in zip(told, missing))


def read_label_table(path: Path, split: str | None = None) -> LabelTable:
    """Labels of a data set's folder of shards (one split, or all), or of a CSV or Parquet file.

    A table is taken as exclusive when each of its rows has exactly one yes and nothing unknown
    among several labels, or when it names each row's class in one column. UserError when it cannot
    be read.
    """
    if path.is_dir():
        return _labels_of_shards(path, load_manifest(path), split)
    given = read_table(path)
    table = given.spread_classes()
    chosen = np.ones(table.rows, bool)
    if split is not None:
        chosen = _rows_of_split(table, split)
    names = tuple(_label_columns(table))
    labels = np.stack([table.labels(name) for name in names], axis=1)[chosen]
    meta = {name: _chosen(table.texts(name), chosen) for name in META_COLUMNS}
    one_hot = ((labels == YES).sum(axis=1) == 1) & (labels != UNKNOWN).all(axis=1)
    one_class_each = table is not given or bool(one_hot.all())
    return LabelTable(
        keys=tuple(key for key, take in zip(table.keys(), chosen) if take),
        names=names,
        labels=labels,
        patients=_chosen(table.texts("patient"), chosen),
        meta={name: values for name, values in meta.items() if values is not None},
        exclusive=one_class_each and (len(names) > 1 or table is not given),
    )


def _rows_of_split(table: Table, split: str) -> np.ndarray:
    splits = table.texts("split")
    if splits is None or split not in splits:
        have = sorted({str(s) for s in splits}) if splits else "no column 'split'"
        raise UserError(f"no split {split!r} in {table.path}; it has: {have}")
    return np.array([found == split for found in splits], bool)


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
        synthetic=manifest.synthetic,
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


def join(predictions: PredictionTable, truth: LabelTable, exclusive: bool | None = None) -> Joined:
    """Bring scores and labels of the same keys together, in the order of the predictions.

    exclusive: whether each image has exactly one of the labels; None: as the two sides say. Where
    it has, a call is one of all the scores' classes, and a class that the truth never names is one
    that no image of known truth has. UserError when a key stands twice on one side, or when no key
    or no label is on both.
    """
    _refuse_duplicates("predictions", predictions.keys)
    _refuse_duplicates("labels", truth.keys)
    labels = tuple(name for name in predictions.labels if name in truth.names)
    if not labels:
        raise UserError(
            f"no label is on both sides: the scores have {', '.join(predictions.labels)}; "
            f"the labels have {', '.join(truth.names)}"
        )
    places = {key: i for i, key in enumerate(truth.keys)}
    matched = [i for i, key in enumerate(predictions.keys) if key in places]
    if not matched:
        raise UserError(
            f"no key is on both sides: scores are of {_some(predictions.keys)}; "
            f"labels are of {_some(truth.keys)}"
        )
    rows = [places[predictions.keys[i]] for i in matched]
    scored_keys = set(predictions.keys)
    if exclusive is None:
        exclusive = _exclusive(predictions, truth, labels)
    if exclusive:
        truth, labels = _of_all_classes(truth, predictions.labels), predictions.labels
    columns = [predictions.labels.index(name) for name in labels]
    truth_columns = [truth.names.index(name) for name in labels]
    probabilities = predictions.probabilities[np.ix_(matched, columns)]
    probabilities[[predictions.errors[i] is not None for i in matched]] = np.nan
    return Joined(
        keys=tuple(predictions.keys[i] for i in matched),
        labels=labels,
        exclusive=exclusive,
        targets=truth.labels[np.ix_(rows, truth_columns)],
        probabilities=probabilities,
        patients=None if truth.patients is None else tuple(truth.patients[i] for i in rows),
        meta={name: tuple(values[i] for i in rows) for name, values in truth.meta.items()},
        synthetic=bool(predictions.synthetic or truth.synthetic),
        unmatched_predictions=tuple(key for key in predictions.keys if key not in places),
        unmatched_labels=tuple(key for key in truth.keys if key not in scored_keys),
        labels_without_truth=tuple(n for n in predictions.labels if n not in truth.names),
        labels_without_scores=tuple(n for n in truth.names if n not in predictions.labels),
        damaged=predictions.damaged,
        scored_by=predictions.scored_by,
    )


def _exclusive(predictions: PredictionTable, truth: LabelTable, common: Sequence[str]) -> bool:
    """Whether both sides take each image to have exactly one of the scores' labels."""
    said = truth.exclusive if predictions.exclusive is None else predictions.exclusive
    if not said or len(predictions.labels) < 2:
        return False
    if len(common) == len(predictions.labels):
        return True
    if predictions.exclusive or not truth.exclusive:
        return truth.exclusive
    return predictions.adds_up  # a stranger's table: then the classes exclude each other


def _of_all_classes(truth: LabelTable, classes: Sequence[str]) -> LabelTable:
    """With a column for each class: 0 in the new ones where the image is known to be another."""
    known = (truth.labels == YES).any(axis=1, keepdims=True)
    absent = [name for name in classes if name not in truth.names]
    added = np.repeat(np.where(known, NO, UNKNOWN), len(absent), axis=1).astype(np.int8)
    labels = np.concatenate([truth.labels, added], axis=1)
    return replace(truth, names=(*truth.names, *absent), labels=labels)


def _refuse_duplicates(side: str, keys: Sequence[str]) -> None:
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise UserError(
            f"{len(repeated)} keys stand more than once in the {side}: {_some(repeated)}; "
            "each image counts once: leave one row of each"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (f", ... ({len(names)})" if len(names) > 3 else "") if names else "nothing"
