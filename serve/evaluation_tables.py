"""An evaluation as CSV files, for spreadsheets and other programs: the numbers of metrics.json at
full precision, and in whole what metrics.json thins or only counts."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from serve.bootstrap import CLASS_METRICS
from serve.curves import rank_curves
from serve.intervals import Estimate
from serve.judged import Judged, judge
from serve.metrics import Evaluation, left_out
from serve.predictions import Joined
from serve.tables import FORMULA

Rows = Iterable[Iterable[Any]]
_OF_CLASS = ("accuracy", *CLASS_METRICS)


def evaluation_tables(found: Evaluation, joined: Joined) -> dict[str, bytes]:
    """Name (without .csv) -> content. Parts that the evaluation has not are no file."""
    judged = judge(joined)
    tables = {
        "metrics": _metrics(found),
        "thresholds": _thresholds(found),
        "curves": _curves(judged),
        "histograms": _histograms(found),
        "calibration": _calibration(found),
        "left_out": _left_out(joined, judged),
    }
    if found.confusion is not None:
        rows = [[label, *row] for label, row in zip(found.labels, found.confusion)]
        tables["confusion"] = to_csv(("truth", *found.labels), rows)
    if found.subgroups:
        tables["subgroups"] = _subgroups(found)
    if found.against is not None:
        tables["against"] = _against(found)
    return tables


def to_csv(header: Sequence[str], rows: Rows) -> bytes:
    """UTF-8; None is an empty field; floats so that they read back as they were; text that a
    spreadsheet would take for a formula gets a ' before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([f"'{cell}" if _is_formula(cell) else cell for cell in row])
    return text.getvalue().encode()


def _is_formula(cell: object) -> bool:
    return isinstance(cell, str) and re.match(FORMULA, cell) is not None


def _ends(value: Estimate | float | None) -> tuple[float | None, float | None, float | None]:
    if isinstance(value, Estimate):
        return value.value, value.low, value.high
    return value, None, None


def _metrics(found: Evaluation) -> bytes:
    """One row per label, number and kind of interval; an empty label: of all, or the mean."""
    rows: list[Sequence[Any]] = []
    if found.accuracy is not None:
        rows.append(("", "accuracy", "wilson", *_ends(found.accuracy)))
    for one in found.classes:
        for name in _OF_CLASS:
            value = getattr(one, name)
            method = "delong" if name == "auroc" else "wilson"
            method = method if isinstance(value, Estimate) else ""
            rows.append((one.label, name, method, *_ends(value)))
    rows += [("", f"mean {name}", "", value, None, None) for name, value in found.mean.items()]
    if found.bootstrap is not None:
        drawn = found.bootstrap
        if drawn.accuracy is not None:
            rows.append(("", "accuracy", "bootstrap", *_ends(drawn.accuracy)))
        for of_class in drawn.classes:
            rows += [
                (of_class.label, name, "bootstrap", *_ends(getattr(of_class, name)))
                for name in CLASS_METRICS
            ]
        rows += [("", f"mean {name}", "bootstrap", *_ends(v)) for name, v in drawn.mean.items()]
    return to_csv(("label", "metric", "interval", "value", "low", "high"), rows)


def _thresholds(found: Evaluation) -> bytes:
    header = ["label", "threshold"]
    for name in ("sensitivity", "specificity"):
        header += [name, f"{name}_half_width", f"{name}_low", f"{name}_high"]
    cells = ("true_positive", "false_negative", "false_positive", "true_negative")
    rows = []
    for one in found.thresholds:
        for row in one.rows:
            values: list[Any] = [one.label, row.threshold]
            for share in (row.sensitivity, row.specificity):
                values += [None] * 4 if share is None else _plus_minus(share)
            rows.append(values + [getattr(row, cell) for cell in cells])
    return to_csv((*header, *cells), rows)


def _plus_minus(share: Any) -> list[float]:
    return [share.value, share.half_width, share.low, share.high]


def _curves(judged: Judged) -> bytes:
    """Every distinct score of every label."""
    names = ("threshold", "true_positive_rate", "false_positive_rate", "precision")
    rows = (
        (curve.label, *values)
        for curve in rank_curves(judged, max_points=None)
        for values in zip(*(getattr(curve, name) for name in names))
    )
    return to_csv(("label", *names), rows)


def _histograms(found: Evaluation) -> bytes:
    edges = found.histograms.edges
    rows = (
        (one.label, low, high, with_it, without)
        for one in found.histograms.classes
        for low, high, with_it, without in zip(edges, edges[1:], one.with_label, one.without_label)
    )
    return to_csv(("label", "from", "to", "with_label", "without_label"), rows)


def _calibration(found: Evaluation) -> bytes:
    observed = ("observed", "observed_low", "observed_high")
    names = ("low", "high", "images", "mean_probability", *observed)
    every = [*found.calibration.classes]
    every += [found.calibration.top] if found.calibration.top else []
    rows = (
        (one.label, *(getattr(part, name) for name in names)) for one in every for part in one.curve
    )
    return to_csv(("label", *names), rows)


def _subgroups(found: Evaluation) -> bytes:
    rows: list[Sequence[Any]] = []
    for part in found.subgroups:
        for group in part.groups:
            start = (part.by, group.value, group.images, group.patients)
            if group.accuracy is not None:
                rows.append((*start, "", "accuracy", *_ends(group.accuracy), None, None))
            rows.append((*start, "", "mean auroc", *_ends(group.mean_auroc), None, None))
            for one in group.classes:
                kinds = (one.positives, one.negatives)
                rows += [
                    (*start, one.label, name, *_ends(getattr(one, name)), *kinds)
                    for name in ("recall", "specificity", "auroc")
                ]
    header = ("by", "value", "images", "patients", "label", "metric")
    return to_csv((*header, "estimate", "low", "high", "positives", "negatives"), rows)


def _against(found: Evaluation) -> bytes:
    assert found.against is not None
    rows: list[Sequence[Any]] = []
    for one in found.against.areas:
        areas = (one.this.value, one.other.value, *_ends(one.difference))
        rows.append(("delong", one.label, *areas, one.z, one.p, one.p_holm))
    for test in found.against.mcnemar:
        counts = (test.only_this, test.only_other, None, None, None, None)
        rows.append(("mcnemar", test.label, *counts, test.p, test.p_holm))
    header = ("test", "label", "this", "other", "difference", "low", "high", "z", "p", "p_holm")
    return to_csv(header, rows)


def _left_out(joined: Joined, judged: Judged) -> bytes:
    kinds = left_out(joined, judged)
    return to_csv(("key", "reason"), ((key, kind) for kind, keys in kinds.items() for key in keys))
