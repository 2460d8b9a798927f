"""Scores and the labels they are judged by, brought together by key.

Scores: a folder of `serve score`, or a CSV or Parquet file with a `key` column and one column
`<label>` or `prob_<label>` per label; the CSV of `serve score` tells all that its folder does.
Labels: serve/truth.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np

from serve.score_csv import DAMAGE, MODEL_COLUMNS
from serve.score_folder import PROBABILITY_PREFIX, ScoreFolder, damage_of
from serve.tables import KEY, Table, read_table
from serve.truth import LabelTable
from serve.vocabularies import classes_outside, refuse_several, truth_of
from shards.console import UserError
from shards.labels import Vocabulary

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

    exclusive: the network calls the label of the largest probability. labels: then all L of the
    network's, else those that both sides have. targets: (N, L) int8, see serve/vocabularies.py;
    probabilities: (N, L) float64, a row of NaN where an image could not be scored. outside: the
    class of an image that has none of the labels, else None. synthetic, synthetic_images: as in
    `serve.metrics.Evaluation`. Left out and named: keys and labels
    that only one side has.
    """

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    exclusive: bool
    targets: np.ndarray
    probabilities: np.ndarray
    patients: tuple[str | None, ...] | None
    meta: dict[str, tuple[str | None, ...]]
    synthetic: bool
    outside: tuple[str | None, ...]
    synthetic_images: int | None = None
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
    _check_probabilities(table, tuple(columns), probabilities)
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


def _check_probabilities(table: Table, labels: tuple[str, ...], values: np.ndarray) -> None:
    bad = np.argwhere((values < 0) | (values > 1))
    if bad.size:
        row, column = bad[0]
        raise UserError(
            f"{table.place(int(row))}, label {labels[column]!r}: a probability is from 0 to 1, "
            f"found {values[row, column]:g}"
        )


def _errors(table: Table, probabilities: np.ndarray) -> tuple[str | None, ...]:
    told = table.texts("error") or [None] * table.rows
    missing = np.isnan(probabilities).all(axis=1)
    return tuple(error or ("no score" if gap else None) for error, gap in zip(told, missing))


def join(predictions: PredictionTable, truth: LabelTable, exclusive: bool | None = None) -> Joined:
    """Bring scores and labels of the same keys together, in the order of the predictions.

    exclusive: whether each image has exactly one of the labels, for both sides; None: as each side
    says. UserError when a key stands twice on one side, when no key or no label is on both, or when
    an image has several labels that exclude each other.
    """
    _refuse_duplicates("predictions", predictions.keys)
    _refuse_duplicates("labels", truth.keys)
    shared = tuple(name for name in predictions.labels if name in truth.names)
    if not shared:
        raise UserError(
            f"no label is on both sides: the scores have {', '.join(predictions.labels)}; "
            f"the labels have {', '.join(truth.names)}; give both the same names: rename the "
            "columns of a table, or map the labels of shards with python -m ingest merge"
        )
    places = {key: i for i, key in enumerate(truth.keys)}
    matched = [i for i, key in enumerate(predictions.keys) if key in places]
    if not matched:
        raise UserError(
            f"no key is on both sides: scores are of {_some(predictions.keys)}; "
            f"labels are of {_some(truth.keys)}"
        )
    rows = [places[predictions.keys[i]] for i in matched]
    keys, values = tuple(truth.keys[i] for i in rows), truth.labels[rows]
    network = Vocabulary(predictions.labels, _excludes(predictions, truth, exclusive))
    given = Vocabulary(truth.names, truth.exclusive if exclusive is None else exclusive)
    refuse_several(given, values, keys)
    labels = network.names if network.exclusive else shared
    columns = [network.index(name) for name in labels]
    probabilities = predictions.probabilities[np.ix_(matched, columns)]
    probabilities[[predictions.errors[i] is not None for i in matched]] = np.nan
    scored_keys = set(predictions.keys)
    drawn = None if truth.synthetic is None else [truth.synthetic[i] for i in rows]
    return Joined(
        keys=keys,
        labels=labels,
        exclusive=network.exclusive,
        targets=truth_of(network, given, values)[:, columns],
        probabilities=probabilities,
        patients=None if truth.patients is None else tuple(truth.patients[i] for i in rows),
        meta={name: tuple(values[i] for i in rows) for name, values in truth.meta.items()},
        synthetic=bool(predictions.synthetic or (drawn and any(one is not False for one in drawn))),
        synthetic_images=None if drawn is None or None in drawn else sum(map(bool, drawn)),
        outside=classes_outside(network, given, values),
        unmatched_predictions=tuple(key for key in predictions.keys if key not in places),
        unmatched_labels=tuple(key for key in truth.keys if key not in scored_keys),
        labels_without_truth=tuple(n for n in predictions.labels if n not in labels),
        labels_without_scores=tuple(n for n in truth.names if n not in predictions.labels),
        damaged=predictions.damaged,
        scored_by=predictions.scored_by,
    )


def _excludes(predictions: PredictionTable, truth: LabelTable, told: bool | None) -> bool:
    """Whether the network's labels exclude each other. A table that does not say so: they do where
    every row adds up to 1, or where they are among labels that do."""
    if len(predictions.labels) < 2:
        return False
    for said in (told, predictions.exclusive):
        if said is not None:
            return said
    among = truth.exclusive and set(predictions.labels) <= set(truth.names)
    return among or predictions.adds_up


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
