"""All numbers of metrics.json, computed from scores and labels that are brought together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.bootstrap import CLASS_METRICS, Bootstrap, bootstrap
from serve.calibration import Calibration, calibrate
from serve.compare import Comparison, compare
from serve.confusion import confusion_matrix, count
from serve.curves import (
    Histograms,
    LabelThresholds,
    Operating,
    RankCurve,
    histograms,
    operating,
    rank_curves,
    threshold_tables,
)
from serve.intervals import Estimate, auroc, average_precision, wilson
from serve.judged import CALL_FROM, Judged, judge
from serve.predictions import Joined, ScoredBy
from serve.subgroups import Subgroups, count_patients, subgroups
from shards.console import UserError, first_few
from shards.labels import UNKNOWN

FORMAT_VERSION = 2  # 2: bootstrap, curves, thresholds, calibration, subgroups, against


@dataclass(frozen=True)
class ClassMetrics:
    """One label against the rest. None: it cannot be computed, and `omitted` says why."""

    label: str
    positives: int
    negatives: int
    unknown: int
    accuracy: Estimate | None
    recall: Estimate | None
    specificity: Estimate | None
    precision: Estimate | None
    f1: float | None
    auroc: Estimate | None
    average_precision: float | None


@dataclass(frozen=True)
class Evaluation:
    """What metrics.json holds. images = evaluated + errors + unlabelled.

    synthetic: some of the images, or of those that the model was trained on, are drawn by a
    program; synthetic_images: so many of the images, None where not known. errors: images that
    could not be scored; unlabelled: without any known truth. Both are in no number. confusion: rows
    are truth, columns calls. mean: over the classes that have the number. call_from: None where the
    call is the class of the largest probability. Intervals of accuracy and classes: Wilson's, and
    DeLong's for auroc; `bootstrap` has those that know of patients. scored_by: the model, None
    where the scores do not say.
    """

    labels: tuple[str, ...]
    exclusive: bool
    split: str | None
    synthetic: bool
    synthetic_images: int | None
    images: int
    evaluated: int
    errors: int
    unlabelled: int
    patients: int | None
    call_from: float | None
    accuracy: Estimate | None
    confusion: list[list[int]] | None
    classes: tuple[ClassMetrics, ...]
    mean: dict[str, float | None]
    omitted: tuple[str, ...]
    bootstrap: Bootstrap | None
    against: Comparison | None
    subgroups: tuple[Subgroups, ...]
    calibration: Calibration
    thresholds: tuple[LabelThresholds, ...]
    histograms: Histograms
    operating: Operating
    curves: tuple[RankCurve, ...]
    scored_by: ScoredBy | None = None
    format_version: int = FORMAT_VERSION
    confidence: float = 0.95


@dataclass(frozen=True)
class MeasureConfig:
    """thresholds: for sensitivity and specificity; replicates: of the bootstrap, 0: none."""

    thresholds: tuple[float, ...] = tuple(i / 10 for i in range(1, 10))
    replicates: int = 1000
    seed: int = 0


def measure(
    joined: Joined,
    split: str | None = None,
    *,
    config: MeasureConfig | None = None,
    validation: Joined | None = None,
    against: tuple[str, Joined] | None = None,
) -> Evaluation:
    """All numbers of metrics.json. UserError when scores and labels cannot be judged.

    validation: scores and labels that the temperature is fitted on; against: the name of another
    model's scores, and these with the same labels.
    """
    config = config or MeasureConfig()
    judged = judge(joined)
    classes = [_measure_class(judged, i) for i in range(len(judged.labels))]
    compared = None if against is None else compare(judged, judge(against[1]), against[0])
    calibration = calibrate(judged, None if validation is None else _validation(validation, joined))
    matrix = correct = None
    if judged.one_class:
        matrix = confusion_matrix(
            judged.truth.argmax(1), judged.called.argmax(1), len(judged.labels)
        )
        correct = wilson(int(np.trace(matrix)), int(matrix.sum()))
    omitted = [*_missing_images(joined, judged), *_no_class(judged), *_missing_numbers(classes)]
    if calibration.no_temperature is not None:
        omitted.append(f"no temperature: {calibration.no_temperature}")
    omitted += (
        [f"against {compared.other}: {line}" for line in compared.omitted] if compared else []
    )
    return Evaluation(
        labels=joined.labels,
        exclusive=joined.exclusive,
        split=split,
        synthetic=joined.synthetic,
        synthetic_images=joined.synthetic_images,
        images=len(joined.keys),
        evaluated=len(judged.keys),
        errors=judged.errors,
        unlabelled=judged.unlabelled,
        patients=count_patients(judged.patients),
        call_from=None if judged.exclusive else CALL_FROM,
        accuracy=correct,
        confusion=None if matrix is None else matrix.tolist(),
        classes=tuple(classes),
        mean={name: _mean(classes, name) for name in CLASS_METRICS},
        omitted=tuple(omitted),
        bootstrap=bootstrap(judged, config.replicates, config.seed) if config.replicates else None,
        against=compared,
        subgroups=subgroups(judged, _of_groups(config.replicates), config.seed),
        calibration=calibration,
        thresholds=threshold_tables(judged, config.thresholds),
        histograms=histograms(judged),
        operating=operating(judged),
        curves=rank_curves(judged),
        scored_by=joined.scored_by,
    )


def _of_groups(replicates: int) -> int:
    """A fifth of the whole's, since there are many groups, but enough for an interval."""
    return min(replicates, max(100, replicates // 5))


def _measure_class(judged: Judged, column: int) -> ClassMetrics:
    positive, scores, called = judged.known(column)
    counts = count(positive, called)
    return ClassMetrics(
        label=judged.labels[column],
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
        unknown=int((judged.truth[:, column] == UNKNOWN).sum()),
        accuracy=wilson(int((called == positive).sum()), len(positive)),
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


def _validation(validation: Joined, evaluated: Joined) -> Judged:
    """UserError when a temperature fitted on them would say nothing of the evaluated images."""
    both = sorted(set(validation.keys) & set(evaluated.keys))
    if both:
        raise UserError(
            f"--calibration: {len(both)} of its images are evaluated too, such as {both[0]!r}; a "
            "temperature is fitted on other images: give the scores of the validation split"
        )
    if validation.labels != evaluated.labels:
        raise UserError(
            f"--calibration has the labels {', '.join(validation.labels)}; the scores have "
            f"{', '.join(evaluated.labels)}: give scores of the same model"
        )
    models = [one.scored_by for one in (validation, evaluated) if one.scored_by is not None]
    if len({model.sha256 for model in models}) > 1:
        raise UserError(
            f"--calibration has the scores of another model ({models[0].file}, SHA-256 "
            f"{models[0].sha256[:8]}) than --scores ({models[1].file}, {models[1].sha256[:8]}); "
            "give scores of the same model"
        )
    return judge(validation)


def _missing_images(joined: Joined, judged: Judged) -> list[str]:
    """One sentence for each kind of image or label that is in no number."""
    out = []
    for kind, keys in left_out(joined, judged).items():
        out += [f"{len(keys)} {kind}: {first_few(keys)}"] if keys else []
    if joined.labels_without_truth:
        out.append(f"scored, but without truth: {first_few(joined.labels_without_truth)}")
    if joined.labels_without_scores:
        out.append(f"labels without scores: {first_few(joined.labels_without_scores)}")
    if joined.damaged:
        out.append(f"the rest of a damaged archive, {first_few(joined.damaged, separator='; ')}")
    return out


def left_out(joined: Joined, judged: Judged) -> dict[str, list[str]]:
    """Kind -> keys of the images that are in no number."""
    failed = np.isnan(joined.probabilities).any(axis=1)
    silent = ~failed
    silent[judged.rows] = False
    return {
        "images could not be scored": [joined.keys[i] for i in np.flatnonzero(failed)],
        "images have no known label": [joined.keys[i] for i in np.flatnonzero(silent)],
        "scored images are not among the labels": list(joined.unmatched_predictions),
        "images with labels have no score": list(joined.unmatched_labels),
    }


def _no_class(judged: Judged) -> list[str]:
    """Why there is no accuracy over classes that exclude each other."""
    return [f"no accuracy: {judged.no_class}"] if judged.exclusive and judged.no_class else []


def _missing_numbers(classes: Sequence[ClassMetrics]) -> list[str]:
    """One sentence for each reason why classes lack a number; the table has them one by one."""
    lacking: dict[str, list[str]] = {}
    for one in classes:
        if not one.positives and not one.negatives:
            reasons = ["no number, its truth is known of no image"]
        elif not one.positives or not one.negatives:
            kind = "without" if not one.positives else "with"
            reasons = [f"no AUROC or average precision, every image is {kind} it"]
        elif one.auroc is not None and one.auroc.low is None:
            reasons = ["no interval of the AUROC, DeLong's variance is zero or unknown"]
        else:
            reasons = []
        if one.precision is None and one.positives + one.negatives:
            reasons.append("no precision, no image was called it")
        if one.unknown:
            reasons.append(f"{one.unknown} images with unknown truth")
        for reason in reasons:
            lacking.setdefault(reason, []).append(one.label)
    out = [f"{first_few(labels)}: {reason}" for reason, labels in lacking.items()]
    for name in CLASS_METRICS:
        absent = [one.label for one in classes if getattr(one, name) is None]
        if absent:
            out.append(f"mean {name.replace('_', ' ')}: without {first_few(absent)}")
    return out
