"""Run folders made by hand for the tests of the report: hostile names, no training."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.evaluate import measure, write_metrics
from serve.metrics import MeasureConfig
from serve.predictions import Joined, ScoredBy
from shards.codec import encode
from shards.manifest import Manifest, SplitCounts
from shards.sample import Sample, SampleMeta
from shards.writer import write_shard

EVIL = "</script><script>alert(1)</script>"
LABELS = ("Normal", "Viral $Pneumonia", EVIL)
CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a screen; the test skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path: make browser")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: make setup")
    with api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield found
        found.close()


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_dataset(folder: Path) -> Manifest:
    """Six test images of three labels, image i of grey level 10 i."""
    samples = [
        Sample(
            key=f"image-{i}",
            image=encode(np.full((64, 96), 10 * i, np.uint8), "png"),
            extension="png",
            labels=np.eye(3, dtype=np.int8)[i % 3],
            meta=SampleMeta("toy", f"{EVIL}.png", "0" * 64, 96, 64),
        )
        for i in range(6)
    ]
    shards = tuple(
        write_shard(folder / "test" / f"toy-test-{n}.tar", "test", samples[3 * n : 3 * n + 3])
        for n in range(2)
    )
    manifest = Manifest(
        dataset="toy",
        labels=LABELS,
        exclusive=True,
        image_extension="png",
        preprocessing_version=1,
        shorter_side=None,
        splits={"test": SplitCounts(6, dict.fromkeys(LABELS, 2))},
        excluded={"duplicate: same pixels": 3, f"lateral {EVIL}": 1},
        settings={},
        shards=shards,
        synthetic=True,
        notes=("A note.",),
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    table = pa.table({"reason": ["empty file", "does not decode: a", "does not decode: b"]})
    pq.write_table(table, folder / "quarantine.parquet")
    return manifest


def make_run(folder: Path, shards: Path) -> Path:
    """A finished run of two phases, without a model, scores or an evaluation."""
    phases = [{"name": "output layer", "epochs": 2}, {"name": f"all {EVIL}", "epochs": 2}]
    settings = {
        "recipe": "network-c",
        "config": {"stages": [{"name": "covid", "dataset": "toy", "phases": phases}]},
        "shards": str(shards),
        "command": f"python -m train network-c # {EVIL}",
        "commit": "0123456789abcdef",
        "synthetic": True,
    }
    write_json(folder / "settings.json", settings)
    write_json(folder / "environment.json", {"torch": "2.11", "gpu": None, "cpu": EVIL})
    rows = [_epoch(epoch, phases[epoch // 3]["name"]) for epoch in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = {"accuracy": 0.875, "auroc_mean": 0.912}
    told = {"best_epoch": 2, "best_val_loss": 0.25, "test": test}
    write_json(folder / "covid" / "result.json", {"phases": [{**one, **told} for one in phases]})
    return folder


def _epoch(epoch: int, phase_name: object) -> dict[str, object]:
    return {
        "stage": "covid",
        "phase": 1 + epoch // 3,
        "phase_name": phase_name,
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "val_loss": 1.1 / epoch,
        "val_accuracy": 1 - 0.4 / epoch,
        "val_auroc": None,
        "lr": 1e-3,
        "seconds": 2.0,
        "step_s": 0.5,
        "img_s": 1234.0,
        "copies": 100,
        "time": 0.0,
    }


def scored(images: int = 6, exclusive: bool = True) -> Joined:
    """Images of the labels in turn, image 0 called wrongly; views and ages for subgroups."""
    truth = np.eye(3, dtype=np.int8)[np.arange(images) % 3]
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (images, 3))
    probabilities = np.where(truth == 1, 0.8, 0.15) + noise
    probabilities[0] = (0.2, 0.95, 0.1)
    keys = tuple(f"image-{i}" for i in range(images))
    meta = {"view": tuple(EVIL if i % 2 else "PA" for i in range(images))}
    outside = (None,) * images
    return Joined(keys, LABELS, exclusive, truth, probabilities, None, meta, True, outside)


def write_weights(run: Path, weights: str) -> None:
    """model.json of the one stage."""
    content = {"weights_sha256": weights, "architecture": "densenet121", "size": 64}
    write_json(run / "covid" / "model.json", content | {"labels": LABELS})


def evaluate_run(run: Path, joined: Joined, scored_by: ScoredBy | None = None) -> None:
    """RUN/evaluation/metrics.json."""
    joined = replace(joined, scored_by=scored_by)
    found = measure(joined, "test", config=MeasureConfig(replicates=50))
    (run / "evaluation").mkdir(exist_ok=True)
    write_metrics(found, run / "evaluation")


def write_features(run: Path) -> None:
    points = [
        {
            "key": f"{EVIL} {i}",
            "class": LABELS[i % 3],
            "predicted": LABELS[0],
            "probability": 0.5,
            "tsne_x": float(i),
            "tsne_y": float(-i),
            "som_row": 0,
            "som_column": i,
        }
        for i in range(6)
    ]
    cells = [
        {"row": 0, "column": i, "class": LABELS[i % 3], "count": 1, "share": 1 / 6}
        for i in range(6)
    ]
    content = {
        "format_version": 1,
        "run": run.name,
        "stage": "covid",
        "dataset": "toy",
        "split": "test",
        "synthetic": True,
        "dimensions": 12,
        "perplexity": 2,
        "epochs": 1,
        "grid": 15,
        "classes": list(LABELS),
        "points": points,
        "cells": cells,
    }
    write_json(run / "features" / "features.json", content)


def write_faithfulness(run: Path) -> None:
    row = {
        "method": f"lrp {EVIL}",
        "maps": 2,
        "pointing": {"hits": 1, "n": 2, "value": 0.5, "low": 0.1, "high": 0.9},
        "iou": None,
        "deletion": 0.25,
        "insertion": 0.75,
        "sanity": None,
        "deletion_curve": [1.0, 0.0],
        "insertion_curve": [0.0, 1.0],
    }
    content = {
        "format_version": 1,
        "stage": "covid",
        "dataset": "toy",
        "split": "test",
        "explanations": 2,
        "with_boxes": 2,
        "fractions": [0.0, 1.0],
        "methods": [row],
        "omitted": [f"cam: {EVIL}"],
    }
    write_json(run / "faithfulness" / "faithfulness.json", content)


def write_shortcuts(run: Path) -> None:
    estimate = {"value": 0.5, "low": 0.25, "high": 0.75}
    performance = {"images": 6, "accuracy": estimate, "mean_auroc": estimate, "classes": []}
    change = {"label": EVIL, "before": 0.25, "after": 0.5, "change": estimate}
    content = {
        "format_version": 1,
        "model": EVIL,
        "model_sha256": "0" * 64,
        "dataset": "toy",
        "split": "test",
        "images": 6,
        "redaction": None,
        "word": {
            "word": EVIL,
            "images": 6,
            "flipped": 1,
            "classes": [change | {"smallest": -0.125, "largest": 0.375}],
        },
        "borders": {
            "region": "the box 0.1,0.1,0.9,0.9",
            "area": 0.64,
            "largest_share": None,
            "as_is": performance,
            "lungs_black": performance,
            "lungs_only": performance,
        },
        "source": None,
        "words": [f"With the lungs black {EVIL}."],
        "omitted": ["source: one data set only"],
    }
    write_json(run / "shortcuts" / "shortcuts.json", content)
