"""Scores and labels -> metrics.json and three pictures. Needs no torch.

Run: python -m serve evaluate --scores DIR --labels DIR --out DIR

Classes that exclude each other: an image's call is the class of its largest probability. Otherwise
a label is called from probability 0.5 on. Unknown truth (-1) is left out label by label.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from serve.confusion import confusion_matrix, count
from serve.figures import confusion_picture, histogram_picture, roc_picture
from serve.intervals import Estimate, auroc, average_precision, wilson
from serve.predictions import Joined, join, read_label_table, read_predictions
from shards.console import UserError
from shards.labels import NO, UNKNOWN, YES
from shards.writer import write_atomic

FORMAT_VERSION = 1
METRICS_NAME = "metrics.json"
CALL_FROM = 0.5
SHARDS_SPLIT = "test"


@dataclass(frozen=True)
class EvaluateConfig:
    """Judge scores by labels: metrics.json, confusion.png, roc.png, histograms.png."""

    scores: Path
    """Folder of python -m serve score, or a CSV or Parquet file with a column per label."""
    labels: Path
    """Folder of a data set's shards, or a CSV or Parquet file with a column per label."""
    out: Path
    """Folder for the metrics and the pictures."""
    split: str | None = None
    """Which split's images count; by default test of shards, and every row of a file."""


@dataclass(frozen=True)
class ClassMetrics:
    """One label against the rest. None: it cannot be computed, and `omitted` says why."""

    label: str
    positives: int
    negatives: int
    unknown: int
    recall: Estimate | None
    specificity: Estimate | None
    precision: Estimate | None
    f1: float | None
    auroc: Estimate | None
    average_precision: float | None


@dataclass(frozen=True)
class Evaluation:
    """What metrics.json holds. images = evaluated + errors + unlabelled.

    errors: images that could not be scored; unlabelled: without any known truth. Both are in no
    number. confusion: rows are truth, columns calls. mean: over the classes that have the number.
    """

    labels: tuple[str, ...]
    exclusive: bool
    split: str | None
    synthetic: bool
    images: int
    evaluated: int
    errors: int
    unlabelled: int
    patients: int | None
    accuracy: Estimate | None
    confusion: list[list[int]] | None
    classes: tuple[ClassMetrics, ...]
    mean: dict[str, float | None]
    omitted: tuple[str, ...]
    format_version: int = FORMAT_VERSION
    confidence: float = 0.95


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Write the folder, metrics.json last, and say the main numbers on standard output."""
    split = config.split or (SHARDS_SPLIT if config.labels.is_dir() else None)
    joined = join(read_predictions(config.scores), read_label_table(config.labels, split))
    found = measure(joined, split)
    config.out.mkdir(parents=True, exist_ok=True)
    write_pictures(found, joined, config.out)
    write_metrics(found, config.out)
    for line in _summary(found):
        print(line)
    return found


def _summary(found: Evaluation) -> list[str]:
    lines = [f"images     {found.evaluated} of {found.images}"]
    if found.accuracy:
        a = found.accuracy
        lines.append(f"accuracy   {a.value:.4f} (95 % interval {a.low:.4f} to {a.high:.4f})")
    means = {name: found.mean[name] for name in ("auroc", "f1")}
    lines += [f"mean {name:<5} {value:.4f}" for name, value in means.items() if value is not None]
    return lines + [f"left out: {line}" for line in found.omitted]


def measure(joined: Joined, split: str | None = None) -> Evaluation:
    """All numbers of metrics.json. UserError when scores and labels cannot be judged."""
    _check(joined)
    truth, scored = joined.targets, ~np.isnan(joined.probabilities).any(axis=1)
    # Of classes that exclude each other, one must be YES, or the truth is not known.
    known = (truth == YES).any(1) if joined.exclusive else (truth != UNKNOWN).any(1)
    kept, errors, unlabelled = scored & known, int((~scored).sum()), int((scored & ~known).sum())
    truth, probabilities = truth[kept], joined.probabilities[kept]
    called = _calls(probabilities, joined.exclusive)
    classes = [
        _measure_class(label, truth[:, i], probabilities[:, i], called[:, i])
        for i, label in enumerate(joined.labels)
    ]
    matrix = correct = None
    if joined.exclusive:
        matrix = confusion_matrix(truth.argmax(1), called.argmax(1), len(joined.labels))
        correct = wilson(int(np.trace(matrix)), int(matrix.sum()))
    return Evaluation(
        labels=joined.labels,
        exclusive=joined.exclusive,
        split=split,
        synthetic=joined.synthetic,
        images=len(joined.keys),
        evaluated=int(kept.sum()),
        errors=errors,
        unlabelled=unlabelled,
        patients=_patients(joined, kept),
        accuracy=correct,
        confusion=None if matrix is None else matrix.tolist(),
        classes=tuple(classes),
        mean={name: _mean(classes, name) for name in _AVERAGED},
        omitted=(*_missing_images(joined, errors, unlabelled), *_missing_numbers(classes)),
    )


_AVERAGED = ("recall", "specificity", "precision", "f1", "auroc", "average_precision")


def _check(joined: Joined) -> None:
    """Joining has seen to equal keys and labels; the values are what is left to be wrong."""
    missing = np.isnan(joined.probabilities)
    if missing.all():
        raise UserError(
            f"none of the {len(joined.keys)} images could be scored: nothing to evaluate; the "
            "column `error` of the scores says why"
        )
    in_range = (joined.probabilities >= 0) & (joined.probabilities <= 1)
    outside = ~in_range & ~missing.all(axis=1, keepdims=True)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise UserError(
            f"image {joined.keys[row]!r} has {joined.probabilities[row, column]:g} for "
            f"{joined.labels[column]!r}; a probability is from 0 to 1: score again"
        )
    if not np.isin(joined.targets, (YES, NO, UNKNOWN)).all():
        raise UserError("the labels hold other values than 1, 0 and -1; ingest again")
    twice = (joined.targets == YES).sum(axis=1) > 1
    if joined.exclusive and twice.any():
        key = joined.keys[int(twice.argmax())]
        raise UserError(f"image {key!r} has several labels, but the labels exclude each other")


def _patients(joined: Joined, kept: np.ndarray) -> int | None:
    """How many patients the images are of; None where it is not known of each image."""
    if joined.patients is None:
        return None
    found = {patient for patient, take in zip(joined.patients, kept) if take}
    return None if None in found else len(found)


def _calls(probabilities: np.ndarray, exclusive: bool) -> np.ndarray:
    """(N, L) float -> (N, L) bool. Equal largest probabilities: the first class."""
    if not exclusive:
        return probabilities >= CALL_FROM
    return probabilities.argmax(1)[:, None] == np.arange(probabilities.shape[1])


def _measure_class(
    label: str, truth: np.ndarray, scores: np.ndarray, called: np.ndarray
) -> ClassMetrics:
    known = truth != UNKNOWN
    positive, scores = truth[known] == YES, scores[known]
    counts = count(positive, called[known])
    return ClassMetrics(
        label=label,
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
        unknown=int((~known).sum()),
        recall=counts.recall,
        specificity=counts.specificity,
        precision=counts.precision,
        f1=counts.f1,
        auroc=auroc(scores, positive),
        average_precision=average_precision(scores, positive),
    )


def _mean(classes: Sequence[ClassMetrics], name: str) -> float | None:
    found = [getattr(one, name) for one in classes]
    values = [v.value if isinstance(v, Estimate) else v for v in found if v is not None]
    return float(np.mean(values)) if values else None


def _missing_images(joined: Joined, errors: int, unlabelled: int) -> list[str]:
    """One sentence for each kind of image or label that is in no number."""
    counted = (
        (errors, "images could not be scored"),
        (unlabelled, "images have no known label"),
        (len(joined.unmatched_predictions), "scored images are not among the labels"),
        (len(joined.unmatched_labels), "images with labels have no score"),
    )
    out = [f"{count} {what}" for count, what in counted if count]
    if joined.labels_without_truth:
        out.append(f"scored, but without truth: {', '.join(joined.labels_without_truth)}")
    if joined.labels_without_scores:
        out.append(f"labels without scores: {', '.join(joined.labels_without_scores)}")
    return out + [f"the rest of a damaged archive, {one}" for one in joined.damaged]


def _missing_numbers(classes: Sequence[ClassMetrics]) -> list[str]:
    """One sentence for each number that a class does not have."""
    out = []
    for one in classes:
        if not one.positives or not one.negatives:
            kind = "without" if not one.positives else "with"
            out.append(f"{one.label}: no AUROC or average precision, every image is {kind} it")
        elif one.auroc is not None and one.auroc.low is None:
            out.append(
                f"{one.label}: no interval of the AUROC, DeLong's variance is zero or unknown"
            )
        if one.precision is None:
            out.append(f"{one.label}: no precision, no image was called it")
        if one.unknown:
            out.append(f"{one.label}: {one.unknown} images with unknown truth")
    for name in _AVERAGED:
        absent = [one.label for one in classes if getattr(one, name) is None]
        if absent:
            out.append(f"mean {name.replace('_', ' ')}: without {', '.join(absent)}")
    return out


def write_pictures(evaluation: Evaluation, joined: Joined, out: Path) -> None:
    """confusion.png (exclusive labels), roc.png and histograms.png."""
    labels, truth, probabilities = joined.labels, joined.targets, joined.probabilities
    if evaluation.confusion is not None:
        matrix = np.array(evaluation.confusion)
        write_atomic(out / "confusion.png", confusion_picture(matrix, labels))
    names = [
        f"{one.auroc.value:.3f}  {one.label}" if one.auroc else one.label
        for one in evaluation.classes
    ]
    write_atomic(out / "roc.png", roc_picture(probabilities, truth, names))
    write_atomic(out / "histograms.png", histogram_picture(probabilities, truth, labels))


def write_metrics(evaluation: Evaluation, out: Path) -> None:
    """metrics.json, at full precision: written last, it says that the folder is complete."""
    text = json.dumps(asdict(evaluation), indent=1, allow_nan=False)
    write_atomic(out / METRICS_NAME, (text + "\n").encode())
