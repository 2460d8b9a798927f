"""What the report's scripts draw from: one JSON object per run, small enough for a page.

Floats are cut to six digits; the CSV files of the evaluation have them all. Labels and keys stay
text: the scripts set them as text only.
"""

import json
from collections.abc import Sequence
from typing import Any

_DIGITS = 6
_CURVE = ("threshold", "true_positive_rate", "false_positive_rate", "precision")
_EPOCH = ("train_loss", "val_loss", "val_accuracy", "val_auroc")


def chart_data(
    stages: Sequence[dict[str, Any]],
    metrics: dict[str, Any] | None,
    features: dict[str, Any] | None,
    faithfulness: dict[str, Any] | None,
) -> dict[str, Any]:
    """stages: name and epochs (rows of metrics.jsonl) of each; the others: the JSON files, None
    where there is none."""
    return {
        "stages": [_stage(stage["rows"]) for stage in stages],
        "evaluation": None if metrics is None else _evaluation(metrics),
        "features": None if features is None else _features(features),
        "faithfulness": None if faithfulness is None else _faithfulness(faithfulness),
    }


def embed(data: Any) -> str:
    """JSON that may stand inside <script>: no character of it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _stage(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """phases: their numbers, and the epochs done before each began."""
    begins = [i for i, row in enumerate(rows) if i == 0 or row["phase"] != rows[i - 1]["phase"]]
    return {
        "phases": [{"number": rows[i]["phase"], "done": i} for i in begins],
        **{name: _short([row.get(name) for row in rows]) for name in _EPOCH},
    }


def _evaluation(metrics: dict[str, Any]) -> dict[str, Any]:
    calibration = metrics["calibration"]
    every = [calibration["top"]] if calibration["top"] else []
    every += calibration["classes"]
    return {
        "curves": [
            {"label": one["label"], **{name: _short(one[name]) for name in _CURVE}}
            for one in metrics["curves"]
        ],
        "calibration": [
            {"label": one["label"], "curve": [_bin(part) for part in one["curve"]]}
            for one in every
            if one["curve"]
        ],
        "histograms": metrics["histograms"],
        "operating": metrics["operating"],
    }


def _bin(part: dict[str, Any]) -> list[float | None]:
    names = ("mean_probability", "observed", "observed_low", "observed_high")
    return [*_short([part[name] for name in names]), part["images"]]


def _features(content: dict[str, Any]) -> dict[str, Any]:
    classes = content["classes"]
    place = {name: i for i, name in enumerate(classes)}
    return {
        "classes": classes,
        "grid": content["grid"],
        "points": [
            [p["tsne_x"], p["tsne_y"], place[p["class"]], p["key"], p["predicted"]]
            for p in content["points"]
        ],
        "cells": [
            [cell["row"], cell["column"], place[cell["class"]], cell["count"]]
            for cell in content["cells"]
        ],
    }


def _faithfulness(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "fractions": _short(content["fractions"]),
        "methods": [
            {
                "method": row["method"],
                "deletion": _short(row["deletion_curve"]),
                "insertion": _short(row["insertion_curve"]),
            }
            for row in content["methods"]
            if row["deletion_curve"] is not None
        ],
    }


def _short(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.{_DIGITS}g}") for value in values]
