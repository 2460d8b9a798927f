"""Scores and the labels they are judged by, brought together by key.

Scores: a folder of `serve score`, or a CSV or Parquet file with a `key` column and one column
`<label>` or `prob_<label>` per label; the CSV of `serve score` tells all that its folder does.
Labels: serve/truth.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import numpy as np

from serve.score_csv import DAMAGE, MODEL_COLUMNS
from serve.score_folder import PROBABILITY_PREFIX, ScoreFolder, damage_of
from serve.tables import KEY, Table, read_table
from serve.truth import LabelTable
from shards.console import UserError
from shards.labels import NO, UNKNOWN, YES

ROW_SUM = 1e-3  # probabilities of softmax add up to 1 within this


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
    table that does not say."""

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
    """Read a folder of scores, a CSV or a Parquet file. UserError when it is none of them, or when
    the rows of a table are of several models."""
    if path.is_dir():
        return _predictions_of_folder(ScoreFolder(path))
    table = read_table(path)
    model = {name: _of_all_rows(table, name) for name in (*MODEL_COLUMNS, "model_sha256")}
    images = _are_images(table)
    columns = _probability_columns(table)
    probabilities = np.stack([table.numbers(column) for column in columns.values()], axis=1)
    _check_probabilities(path, tuple(columns), probabilities)
    file, sha256 = model["model"], model["model_sha256"]
    scored_by = None
    if file is not None and sha256 is not None:  # the CSV of a score folder: float32, as there
        scored_by = ScoredBy(file, sha256, model["weights_sha256"], model["precision"])
        probabilities = probabilities.astype(np.float32).astype(np.float64)
    return PredictionTable(
        keys=tuple(table.keys(images)),
        labels=tuple(columns),
        probabilities=probabilities[images],
        errors=tuple(compress(_errors(table, probabilities), images)),
        exclusive=_yes_or_no(path, "exclusive", model["exclusive"]),
        synthetic=_yes_or_no(path, "synthetic", model["synthetic"]),
        damaged=_damaged(table),
        scored_by=scored_by,
    )


def _of_all_rows(table: Table, name: str) -> str | None:
    """What a column that tells of the model says. UserError when it says several things."""
    found = list(dict.fromkeys(table.names(name) or [None]))
    if len(found) > 1:
        raise UserError(
            f"{table.path}: column {name!r} has {_some([one or 'nothing' for one in found])}; the "
            "rows of a table are of one model: divide it"
        )
    return found[0]


def _yes_or_no(path: Path, name: str, said: str | None) -> bool | None:
    known = {None: None, "true": True, "false": False}
    lower = None if said is None else said.lower()
    if lower not in known:
        raise UserError(f"{path}: column {name!r} has {said!r}; allowed: true, false or nothing")
    return known[lower]


def _are_images(table: Table) -> list[bool]:
    """Not the rows that stand for the rest of an archive: neither key nor member, but an error."""
    keys, members, errors = (table.names(name) for name in (KEY, "member", "error"))
    if keys is None or members is None or errors is None:
        return [True] * table.rows
    rows = zip(keys, members, errors)
    return [key is not None or member is not None or error is None for key, member, error in rows]


def _damaged(table: Table) -> tuple[str, ...]:
    archives, damage = table.names("archive"), table.names(DAMAGE)
    if archives is None or damage is None:
        return ()
    return tuple(dict.fromkeys(f"{a}: {d}" for a, d in zip(archives, damage) if d is not None))


def _predictions_of_folder(folder: ScoreFolder) -> PredictionTable:
    summary, rows = folder.finished(), folder.read()
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
        damaged=tuple(damage_of(summary)),
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
    return {name: name for name in table.label_names()}


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
